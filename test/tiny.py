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
"""Tiny bundles with random weights, in shapes that no shipped bundle has; they run in a millisecond."""
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ee_seg_ros.inference.criteria import CRITERIA

WIDTH, HEIGHT, CLASSES, CHANNELS, LEVELS = 64, 48, 3, 4, 16
STRIDE = 8
EXITS = ('exit1', 'exit2', 'exit3', 'exit4', 'final')
CELLS = {'rows': 6, 'columns': 8}    # one of the values of every map each
PIXELS = {'limits': {'class_threshold': [0.5, 0.6, 0.7], 'uniform': [0.9] * CLASSES}, 'send': [0.95] * CLASSES,
          'worth': {'class_threshold': [0.05, 0.1]}}


def mixed_image(seed: int = 1, amplitudes=((4, 20), (60, 120))) -> np.ndarray:
    """Noise, uint8 (48, 64, 3), of another amplitude in each quarter: the stronger, the surer are the first exits."""
    noise = np.random.default_rng(seed).uniform(-1, 1, (HEIGHT, WIDTH, 3))
    strength = np.kron(amplitudes, np.ones((HEIGHT // 2, WIDTH // 2)))
    return (128 + noise * strength[..., None]).astype(np.uint8)


def tiny_bundle(folder: Path, split: str = 'stage2', exits=EXITS, cells: bool = False, experts=None) -> Path:
    """Write a bundle with an exit behind each of five stages (those in `exits`, the last one among them); its folder.

    split: the last onboard stage, or None. The second exit and the final one also read the first features of
    their side. The multiply-accumulates of each graph are a power of two: a sum says which graphs it counts.
    cells: what lies behind the first exit can run in windows, pixels can stop one by one, and cells can stay behind.
    experts: family -> names of exits that have a head of that expert.
    """
    pytest.importorskip('onnx', reason='onnx is not installed (make train-env)')
    folder.mkdir(parents=True)
    features = [1, CHANNELS, HEIGHT // STRIDE, WIDTH // STRIDE]
    tensors = {'image': {'dtype': 'float32', 'shape': [1, 3, HEIGHT, WIDTH]}}
    graphs, stages, earliest, previous = {}, [], 'features1', 'image'

    def add(name, inputs, output, channels=CHANNELS, dtype='float32'):
        tensors[output] = {'dtype': dtype, 'shape': [1, channels, *features[2:]]}
        sizable = cells and name.split('_')[0] not in ('stage1', 'exit1', 'encode', 'decode')
        content = _graph(name, {tensor: tensors[tensor] for tensor in inputs}, output, tensors[output], sizable)
        (folder / f'{name}.onnx').write_bytes(content)
        graphs[name] = {'file': f'{name}.onnx', 'sha256': hashlib.sha256(content).hexdigest(), 'inputs': inputs,
                        'outputs': [output], 'macs': 2.0 ** len(graphs)}

    for number, exit_name in enumerate(EXITS, start=1):
        stages.append(f'stage{number}')
        add(stages[-1], [previous], f'features{number}')
        previous = f'features{number}'
        if exit_name in exits:
            add(exit_name, [previous, earliest] if exit_name in ('exit2', 'final') else [previous], f'logits{number}',
                CLASSES)
        if stages[-1] == split:
            add('encode', sorted({earliest, previous}), 'code', dtype='uint8')
            add('decode', ['code'], 'restored')
            earliest = previous = 'restored'
    for family, names in (experts or {}).items():
        for name in names:
            add(f'{name}_{family}', graphs[name]['inputs'], f'logits_{name}_{family}', CLASSES)
    _write_document(folder, tensors, graphs, stages, split, exits, cells, experts)
    return folder


def _write_document(folder, tensors, graphs, stages, split, exits, cells, experts):
    judged = len(exits) - 1
    needs = (None, 'pixels') if cells else (None,)
    rules = [rule for rule in CRITERIA.values() if rule.score and rule.needs in needs]
    document = {
        'format': 1, 'name': folder.name,
        'classes': [{'name': f'class{number}', 'color': [number * 100] * 3} for number in range(CLASSES)],
        'input': {'width': WIDTH, 'height': HEIGHT, 'scale': [1 / 127.5] * 3, 'offset': [-1.0] * 3, 'pad': 127},
        'tensors': tensors, 'graphs': graphs, 'stages': stages,
        'exits': [{'name': name, 'stage': stages[EXITS.index(name)], 'graph': name, 'temperature': 1.0}
                  for name in exits],
        'split': {'after': split, 'encode': 'encode', 'decode': 'decode'} if split else None,
        'codec': {'name': 'zstd', 'levels': LEVELS} if split else None,
        'criteria': {rule.name: {'direction': rule.direction, 'thresholds': rule.thresholds, 'curve': [],
                                 'operating_points': {point: {'thresholds': [0.5] * judged}
                                                      for point in ('fast', 'balanced', 'accurate')}}
                     for rule in rules if judged},
        'provenance': {'data': 'none', 'licence': 'none'},
    }
    if cells:
        document.update(cells=CELLS, pixels=PIXELS)
        if split:
            means = np.random.default_rng(0).integers(0, LEVELS, (CLASSES, CHANNELS))
            document['codec']['class_means'] = {'code': means.tolist()}
    if experts:    # each settles by other thresholds than the exits' own heads
        document['experts'] = {
            family: {'exits': {name: {'graph': f'{name}_{family}', 'temperature': 2.0} for name in names},
                     'criteria': {'entropy': {**document['criteria']['entropy'], 'operating_points': {
                         point: {'thresholds': [0.25] * judged} for point in ('fast', 'balanced', 'accurate')}}}}
            for family, names in experts.items()}
    (folder / 'bundle.json').write_text(json.dumps(document))


def _graph(name, inputs, output, described, sizable):
    """ONNX bytes of a random 3x3 convolution over the inputs side by side, at stride 8 if it reads the image.

    sizable: the dimensions have the names that `models.export` gives them where a graph can run in windows.
    """
    from onnx import TensorProto, helper, numpy_helper
    types = {'float32': TensorProto.FLOAT, 'uint8': TensorProto.UINT8}

    def declared(key, tensor):
        shape = [*tensor['shape'][:2], 'height1', 'width1'] if sizable else tensor['shape']
        return helper.make_tensor_value_info(key, types[tensor['dtype']], shape)
    stride = STRIDE if 'image' in inputs else 1
    # Seeded by what the graph is, so that it does not change with what else there is. Weights spread the values wide.
    rng = np.random.default_rng(list(name.encode()))
    shape = (described['shape'][1], sum(tensor['shape'][1] for tensor in inputs.values()), 3, 3)
    weights = rng.normal(0, 1.5 / np.sqrt(shape[1]), shape).astype(np.float32)
    code = described['dtype'] == 'uint8'
    nodes = [helper.make_node('Cast', [tensor], [f'{tensor}_float'], to=TensorProto.FLOAT) for tensor in inputs]
    nodes += [
        helper.make_node('Concat', [f'{tensor}_float' for tensor in inputs], ['together'], axis=1),
        helper.make_node('Conv', ['together', 'weights'], ['result'], strides=[stride] * 2, pads=[1] * 4),
        helper.make_node('Clip', ['result', 'low', 'high'], ['clipped']),
        helper.make_node('Cast', ['clipped'], [output], to=types[described['dtype']])]
    values = {'weights': weights, 'low': np.float32(0 if code else -99), 'high': np.float32(LEVELS - 1 if code else 99)}
    graph = helper.make_graph(
        nodes, name, [declared(key, tensor) for key, tensor in inputs.items()], [declared(output, described)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in values.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8).SerializeToString()
