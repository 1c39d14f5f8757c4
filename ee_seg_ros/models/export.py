# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Export a trained network to a bundle: one ONNX file per stage and per head, checked against torch."""
import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ee_seg_ros.data.camvid import CLASS_COLORS, CLASS_NAMES
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.models.multi_exit import StreetNet

TOLERANCE = 2e-3    # largest difference of a float output between torch and onnxruntime


class _Part(nn.Module):
    """A piece of the network with a forward of its own, so that it can be exported alone."""

    def __init__(self, owner, forward):
        super().__init__()
        self.owner, self._forward = owner, forward
        self.eval()    # the exporter puts a module back into the mode it found it in, children included

    def forward(self, *tensors):
        return self._forward(*tensors)


def _to_levels(tensors):
    return tuple(tensor.to(torch.uint8) for tensor in tensors)


def street_parts(net: StreetNet) -> list:
    """(graph, module, input names, output names) of each piece of `StreetNet`, in an order in which they can run."""
    def stage1(image):
        detail = net.stages['detail'](image)
        return detail, net.stages['stage1'](detail)
    parts = [
        ('stage1', _Part(net.stages, stage1), ['image'], ['detail', 'features1']),
        ('exit1', net.exits['exit1'], ['features1'], ['logits1']),
        ('stage2', net.stages['stage2'], ['features1'], ['features2']),
        ('exit2', net.exits['exit2'], ['features2'], ['logits2']),
        ('stage3', net.stages['stage3'], ['features2'], ['features3']),
        ('exit3', net.exits['exit3'], ['features3'], ['logits3']),
        ('encode', _Part(net.bottleneck, lambda *inputs: _to_levels(net.bottleneck.encode(*inputs))),
         ['detail', 'features1', 'features3'], ['low', 'high']),
        ('decode', _Part(net.bottleneck, lambda low, high: net.bottleneck.decode(low.float(), high.float())),
         ['low', 'high'], ['restored_detail', 'restored3']),
        ('stage4', net.stages['stage4'], ['restored3'], ['features4']),
        ('final', net.final, ['features4', 'restored_detail'], ['logits4']),
    ]
    return parts


def _export_graph(module, inputs, names_in, names_out, path):
    """Write one ONNX file; return (outputs of torch, multiply-accumulates by torch's FlopCounterMode)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')    # the exporter announces its own successor
        torch.onnx.export(module, tuple(inputs), str(path), input_names=names_in, output_names=names_out,
                          opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=['CPUExecutionProvider'])
    got = session.run(names_out, {name: tensor.numpy() for name, tensor in zip(names_in, inputs)})
    for name, expected, found in zip(names_out, outputs, got):
        difference = np.abs(expected.numpy().astype(np.float32) - found.astype(np.float32))
        if expected.dtype == torch.uint8:
            wrong = np.count_nonzero(difference) / difference.size
            if difference.max() > 1 or wrong > 1e-3:    # a value on the edge between two levels may fall either way
                raise RuntimeError(f'{path.name}: {wrong:.2%} of the levels of {name} differ from torch')
        elif difference.max() > TOLERANCE * max(1.0, float(expected.abs().max())):
            raise RuntimeError(f'{path.name}: {name} differs from torch by {difference.max():.2g}')
    return outputs, counter.get_total_flops() / 2


def export(weights: str | Path, out: str | Path, name: str, provenance: dict, image: np.ndarray | None = None,
           width: int = 480, height: int = 368) -> Path:
    """Export a `StreetNet` state_dict (`weights.pt` of a training) to the bundle folder `out`; returns `out`.

    provenance: dict with at least `data` and `licence`. image: float32 (1, 3, height, width) network input used for
    the equality check (random if None). The bundle has no curves yet: `calibrate` measures and stores them.
    Raises RuntimeError if an ONNX graph does not compute what torch computes.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    net = StreetNet(len(CLASS_NAMES)).eval()
    state = torch.load(weights, map_location='cpu', weights_only=True)
    net.load_state_dict(state)
    if image is None:
        image = np.random.default_rng(0).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    tensors = {'image': torch.from_numpy(image)}
    graphs = {}
    for graph, module, names_in, names_out in street_parts(net):
        path = out / f'{graph}.onnx'
        outputs, macs = _export_graph(module, [tensors[tensor] for tensor in names_in], names_in, names_out, path)
        tensors.update(zip(names_out, outputs))
        graphs[graph] = {'file': path.name, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
                         'inputs': names_in, 'outputs': names_out, 'macs': macs}
    document = {
        'format': 1, 'name': name,
        'classes': [{'name': label, 'color': list(color)} for label, color in zip(CLASS_NAMES, CLASS_COLORS)],
        'input': {'width': width, 'height': height, 'scale': [1 / 127.5] * 3, 'offset': [-1.0] * 3, 'pad': 127},
        'tensors': {key: {'dtype': str(tensor.dtype).removeprefix('torch.'), 'shape': list(tensor.shape)}
                    for key, tensor in tensors.items()},
        'graphs': graphs,
        'stages': ['stage1', 'stage2', 'stage3', 'stage4'],
        'exits': [{'name': exit_name, 'stage': f'stage{index}', 'graph': exit_name, 'temperature': 1.0}
                  for index, exit_name in enumerate(net.exit_names, start=1)],
        'split': {'after': 'stage3', 'encode': 'encode', 'decode': 'decode'},
        'codec': {'name': 'zstd', 'levels': net.bottleneck.levels},
        'criteria': {criterion.name: {
            'direction': criterion.direction, 'thresholds': criterion.thresholds, 'curve': [],
            'operating_points': {point: {'thresholds': [0.0] * 3} for point in ('fast', 'balanced', 'accurate')}}
            for criterion in CRITERIA.values() if criterion.score},
        'provenance': provenance,
    }
    save_file({key: value.contiguous() for key, value in state.items()}, str(out / 'weights.safetensors'))
    (out / 'bundle.json').write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    return out
