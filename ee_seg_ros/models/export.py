# Copyright 2026 The ee_seg_ros authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Export a trained network to a bundle: one ONNX file per stage and per head, checked against torch."""
import copy
import hashlib
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.detector import Detector
from ee_seg_ros.models.multi_exit import DEFAULT_INPUT, MultiExitNet, Part

TOLERANCE = 2e-3    # largest difference of a float output between torch and onnxruntime, as a share of the largest


class ExportError(RuntimeError):
    """An ONNX graph does not compute what torch computes."""


class _ToLevels(nn.Module):
    """An encoder that puts out its levels as uint8."""

    def __init__(self, encode):
        super().__init__()
        self.encode = encode

    def forward(self, *tensors):
        return tuple(tensor.to(torch.uint8) for tensor in self.encode(*tensors))


class _FromLevels(nn.Module):
    """A decoder that takes uint8 levels."""

    def __init__(self, decode):
        super().__init__()
        self.decode = decode

    def forward(self, *levels):
        return self.decode(*[tensor.float() for tensor in levels])


def _folded(module):
    """A copy whose transposed convolutions have taken in the batch norms behind them.

    torch's exporter does that for plain convolutions only.
    """
    module = copy.deepcopy(module).eval()
    for chain in [child for child in module.modules() if isinstance(child, nn.Sequential)]:
        for place, (first, second) in enumerate(zip(list(chain), list(chain)[1:])):
            if isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.BatchNorm2d):
                chain[place], chain[place + 1] = fuse_conv_bn_eval(first, second, transpose=True), nn.Identity()
    return module


def parts(net: MultiExitNet) -> list:
    """The parts of a network as they are exported, in eval mode, its experts behind all others.

    Features are uint8 between `encode` and `decode`.
    """
    wrappers = {'encode': _ToLevels, 'decode': _FromLevels}
    pieces = [*net.eval().parts, *net.expert_parts]
    return [replace(part, module=_folded(wrappers[part.kind](part.module) if part.kind in wrappers else part.module))
            for part in pieces]


def _check_equal(path, name, expected, found):
    difference = np.abs(expected.numpy().astype(np.float32) - found.astype(np.float32))
    if expected.dtype == torch.uint8:
        wrong = np.count_nonzero(difference) / difference.size
        if difference.max() > 1 or wrong > 1e-3:    # a value on the edge between two levels may fall either way
            raise ExportError(f'{path.name}: {wrong:.2%} of the levels of {name} differ from torch')
    elif not difference.max() <= TOLERANCE * max(1.0, float(expected.abs().max())):    # NaN is no less
        raise ExportError(f'{path.name}: {name} differs from torch by {difference.max():.2g}')


def _cells(pieces, tensors):
    """(cells or None, part name -> dynamic axes) of the parts that may run in windows: all behind the first exits.

    cells: {rows, columns} of the coarsest map there. Where a map is no multiple of it there are none, and all
    dimensions are fixed.
    """
    first, *rest = pieces
    able = [part for part in rest if part.kind == 'stage' or (part.kind in ('exit', 'expert') and part.inputs[0] not in
                                                              first.outputs)]
    sizes = {name: tuple(tensors[name].shape[-2:]) for part in able for name in (*part.inputs, *part.outputs)}
    rows, columns = min(sizes.values(), default=(1, 1))
    times = {name: height // rows for name, (height, _) in sizes.items()}
    if not able or any(size != (rows * times[name], columns * times[name]) for name, size in sizes.items()):
        return None, {}
    return {'rows': rows, 'columns': columns}, {
        part.name: {name: {2: f'height{times[name]}', 3: f'width{times[name]}'}
                    for name in (*part.inputs, *part.outputs)} for part in able}


def _run_parts(pieces, image):
    """Every tensor by name, as torch computes it, and each part's multiply-accumulates (torch's FlopCounterMode)."""
    tensors, macs = {'image': image}, {}
    for part in pieces:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            outputs = part.module(*[tensors[name] for name in part.inputs])
        tensors.update(zip(part.outputs, outputs if isinstance(outputs, (tuple, list)) else (outputs,)))
        macs[part.name] = counter.get_total_flops() / 2
    return tensors, macs


def export_part(part: Part, tensors: dict, path: Path, axes: dict | None = None) -> None:
    """Write one ONNX file, checked against torch.

    tensors: its inputs, and the outputs that torch makes of them, by name. axes: its dynamic dimensions. Raises
    ExportError if the graph does not compute what torch computes.
    """
    inputs = [tensors[name] for name in part.inputs]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')    # the exporter announces its own successor
        torch.onnx.export(part.module, tuple(inputs), str(path), input_names=list(part.inputs),
                          output_names=list(part.outputs), opset_version=17, dynamo=False, dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=['CPUExecutionProvider'])
    got = session.run(part.outputs, {name: tensor.numpy() for name, tensor in zip(part.inputs, inputs)})
    for name, found in zip(part.outputs, got):
        _check_equal(path, name, tensors[name], found)


def _exits(pieces):
    """The exits of bundle.json: which stage each sits behind, in order."""
    exits, stage = [], None
    for part in pieces:
        stage = part.name if part.kind == 'stage' else stage
        if part.kind == 'exit':
            exits.append({'name': part.name, 'stage': stage, 'graph': part.name, 'temperature': 1.0})
    return exits


def _experts(net, criteria):
    """The experts of bundle.json, by family; criteria: of its exits, which stand there until others are measured."""
    return {family: {'exits': {name: {'graph': f'{name}_{family}', 'temperature': 1.0} for name in heads},
                     'criteria': copy.deepcopy(criteria)} for family, heads in net.experts.items()}


def _remove_previous(out):
    """Remove the bundle that lies in a folder, and nothing else: its graphs may have other names than the new ones."""
    document = out / 'bundle.json'
    if document.is_file():
        previous = json.loads(document.read_text(encoding='utf-8'))
        files = [*previous['graphs'].values(), *filter(None, [previous.get('detector')])]
        for path in (document, out / 'weights.safetensors', *(out / entry['file'] for entry in files)):
            path.unlink(missing_ok=True)


def export(net: MultiExitNet, out: str | Path, name: str, provenance: dict, classes: list, width: int = 480,
           height: int = 368, image: np.ndarray | None = None, with_weights: bool = True) -> Path:
    """Export a network to the bundle folder `out`; returns `out`.

    provenance: dict with at least `data` and `licence`. classes: [{'name', 'color': [r, g, b]}]. width, height: of the
    network input, multiples of the backbone's stride. image: float32 (1, 3, height, width) network input for the
    equality check (random if None). with_weights: also write weights.safetensors, for fine-tuning. The bundle has no
    curves yet: `search.calibration.calibrate` measures and stores them. A bundle that lies in `out` is replaced.
    Raises ValueError for wrong input, ExportError if an ONNX graph does not compute what torch computes.
    """
    if len(classes) != net.spec['classes']:
        raise ValueError(f"{len(classes)} classes are named, the network has {net.spec['classes']}")
    if width % net.stride or height % net.stride:
        raise ValueError(f'network input {width}x{height}: width and height must be multiples of {net.stride}')
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _remove_previous(out)
    scaling = net.spec.get('input', DEFAULT_INPUT)
    if image is None:
        image = np.random.default_rng(0).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    pieces = parts(net)
    tensors, macs = _run_parts(pieces, torch.from_numpy(image))
    cells, axes = _cells(pieces, tensors)
    graphs = {}
    for part in pieces:
        path = out / f'{part.name}.onnx'
        export_part(part, tensors, path, axes.get(part.name))
        graphs[part.name] = {'file': path.name, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
                             'inputs': list(part.inputs), 'outputs': list(part.outputs), 'macs': macs[part.name]}
    stages = [part for part in pieces if part.kind == 'stage']
    split = None
    if net.split_unit is not None:
        after = next(part.name for part in stages if part.outputs[-1] == f'unit{net.split_unit}')
        split = {'after': after, 'encode': 'encode', 'decode': 'decode'}
    exits = _exits(pieces)
    criteria = {rule.name: rule.entry(len(exits) - 1) for rule in CRITERIA.values()
                if rule.score and not rule.needs and len(exits) > 1}
    document = {
        'format': 1, 'name': name, 'classes': classes,
        'input': {'width': width, 'height': height, 'scale': list(scaling['scale']),
                  'offset': list(scaling['offset']), 'pad': 127},
        'tensors': {key: {'dtype': str(tensor.dtype).removeprefix('torch.'), 'shape': list(tensor.shape)}
                    for key, tensor in tensors.items()},
        'graphs': graphs, 'stages': [part.name for part in stages], 'exits': exits, 'split': split, 'cells': cells,
        'codec': {'name': 'zstd', 'levels': net.bottleneck.levels if split else 2},
        'criteria': criteria, 'provenance': provenance, 'network': net.spec,
    }
    if net.experts:
        document['experts'] = _experts(net, criteria)
    if with_weights:
        save_file({key: value.contiguous() for key, value in net.state_dict().items()},
                  str(out / 'weights.safetensors'))
    (out / 'bundle.json').write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    return out


def add_detector(bundle: Path, folder: Path) -> None:
    """Put a detector of distortions into a bundle, in place of an earlier one.

    folder: where `ee_seg train` wrote it (detector.json and its graph), or another bundle, whose detector is taken. The
    fingerprint stays: nothing that is sent depends on it. Raises ValueError for a folder without a detector,
    BundleError for one that cannot be used.
    """
    trained = folder / 'detector.json'
    try:
        described = json.loads((trained if trained.is_file() else folder / 'bundle.json').read_text(encoding='utf-8'))
        described = described if trained.is_file() else described['detector']
        content = (folder / described['file']).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{folder} holds no detector ({error}): expected detector.json and detector.onnx as '
                         '`ee_seg train` writes them, or a bundle that has one') from None
    document = json.loads((bundle / 'bundle.json').read_text(encoding='utf-8'))
    document['detector'] = described
    (bundle / described['file']).write_bytes(content)
    (bundle / 'bundle.json').write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    Detector(Bundle.load(bundle))
