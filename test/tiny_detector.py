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
"""A detector made by hand: it takes rough images for noisy and smooth ones for blurred, by one of the features."""
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ee_seg_ros.data.distortions import FAMILIES
from ee_seg_ros.inference.detector import FEATURES, RINGS, SECTORS

COUNT = 94                        # features
MEDIAN = RINGS * SECTORS + 3      # logarithm of the median roughness
SMOOTH, ROUGH = np.log(1.0), np.log(14.0)


def add_detector(folder: Path, blur=None, **changes) -> Path:
    """Write detector.onnx into a bundle's folder, and what bundle.json says of it, changed as given; the folder.

    blur: what it says of every image's blur; None: nothing.
    """
    pytest.importorskip('onnx', reason='onnx is not installed (make train-env)')
    content = _graph(blur)
    (folder / 'detector.onnx').write_bytes(content)
    document = json.loads((folder / 'bundle.json').read_text())
    document['detector'] = {'file': 'detector.onnx', 'sha256': hashlib.sha256(content).hexdigest(),
                            'features': FEATURES, 'families': list(FAMILIES), 'width': 448, 'height': 336,
                            'provenance': {'data': 'none', 'licence': 'none'}, **changes}
    (folder / 'bundle.json').write_text(json.dumps(document))
    return folder


def _graph(blur):
    from onnx import TensorProto, helper, numpy_helper
    weights, bias = np.zeros((COUNT, 4), np.float32), np.float32([0, 8 * SMOOTH, -8 * ROUGH, -99])
    weights[MEDIAN] = 0, -8, 8, 0
    levels = np.float32([[0, 0.25, 0.5, 1]])
    nodes = [helper.make_node('Gemm', ['features', 'weights', 'bias'], ['logits']),
             helper.make_node('Softmax', ['logits'], ['probabilities'], axis=1),
             helper.make_node('Identity', ['strengths'], ['levels'])]
    outputs = {'probabilities': 4, 'levels': 4}
    if blur is not None:
        nodes.append(helper.make_node('Identity', ['spread'], ['blur']))
        outputs['blur'] = 3
    graph = helper.make_graph(
        nodes, 'detector', [helper.make_tensor_value_info('features', TensorProto.FLOAT, [1, COUNT])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (
            ('weights', weights), ('bias', bias), ('strengths', levels), ('spread', np.float32([blur or (0, 0, 0)])))])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8).SerializeToString()
