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
"""Bundles in int8."""
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import CLASSES, EXITS, HEIGHT, WIDTH, tiny_bundle

onnx = pytest.importorskip('onnx', reason='onnx is not installed (make train-env)')

from ee_seg_ros.data.scenes import StreetDrive  # noqa: E402
from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402
from ee_seg_ros.models import quantise as quantising  # noqa: E402
from ee_seg_ros.models.quantise import compare, quantise, running_order  # noqa: E402

# x86 without VNNI adds two products in 16 bits, which saturate: then less agrees (0.79 with AVX2).
CPU = Path('/proc/cpuinfo')
HAS_VNNI = not CPU.is_file() or 'avx2' not in CPU.read_text() or 'vnni' in CPU.read_text()


@pytest.fixture(scope='module')
def images():
    return [StreetDrive(2).frame(40 * index).image for index in range(3)]


@pytest.fixture(scope='module', params=['stage2', None])
def bundle(request, tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'tiny', request.param))


@pytest.fixture(scope='module')
def int8(bundle, images):
    return Bundle.load(quantise(bundle.path, bundle.path.parent / 'int8', images, float_layers=0))


def operators(bundle, graph):
    return [node.op_type for node in onnx.load_from_string(bundle.graph_bytes(graph)).graph.node]


def test_graphs_run_in_an_order_in_which_they_can(bundle):
    order, known = running_order(bundle), {'image'}
    assert sorted(order) == sorted(bundle.graphs)
    for graph in order:
        assert known >= set(bundle.graphs[graph]['inputs'])
        known |= set(bundle.graphs[graph]['outputs'])


def test_weights_are_int8_per_channel_and_the_codec_stays_exact(bundle, int8):
    """`Bundle.graph_bytes` checks the new SHA-256 on the way."""
    for graph in bundle.graphs:
        if graph in ('encode', 'decode'):
            assert int8.graph_bytes(graph) == bundle.graph_bytes(graph)
            continue
        model = onnx.load_from_string(int8.graph_bytes(graph)).graph
        (layer,) = [node for node in model.node if node.op_type == 'Conv']
        source = {output: node for node in model.node for output in node.output}[layer.input[1]]
        stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.initializer}
        weights, scales, zeros = (stored[name] for name in source.input)
        assert source.op_type == 'DequantizeLinear'
        assert weights.dtype == np.int8 and scales.shape == weights.shape[:1] and not zeros.any()


def test_it_is_another_bundle_with_the_same_thresholds(bundle, int8):
    assert int8.name == 'tiny_int8' and int8.fingerprint != bundle.fingerprint
    changed = {'name', 'graphs', 'provenance'}
    assert {key for key in bundle.document if bundle.document[key] != int8.document[key]} == changed
    assert all({**int8.graphs[name], 'sha256': ''} == {**graph, 'sha256': ''} for name, graph in bundle.graphs.items())
    assert int8.document['provenance'] == {**bundle.document['provenance'], 'int8': {
        'of': 'tiny', 'of_fingerprint': bundle.fingerprint, 'calibration_images': 3, 'float_layers': 0}}


def test_every_exit_says_nearly_the_same(bundle, int8, images):
    """Logits of the first exit within some steps of 1/255 of their range; behind the codec a level may tip over."""
    for image in images:
        before, after = (Engine(one, threads=1).run_exit(image, 'exit1').output.logits for one in (bundle, int8))
        assert before.shape == (CLASSES, HEIGHT // 8, WIDTH // 8)
        assert np.abs(before - after).max() < 0.05 * np.ptp(before)
        assert np.abs(before - after).max() > 0
        final = [Engine(one, threads=1).run_exit(image, 'final').output.mask(120, 90) for one in (bundle, int8)]
        assert np.mean(final[0] == final[1]) > (0.9 if HAS_VNNI else 0.6)


def test_the_first_layers_stay_float_if_wanted(bundle, images, tmp_path):
    kept = Bundle.load(quantise(bundle.path, tmp_path / 'kept', images, float_layers=1))
    assert 'DequantizeLinear' not in operators(kept, 'stage1')
    assert 'DequantizeLinear' in operators(kept, 'exit1')


def test_cost_and_gain_are_measured_and_stored(bundle, int8, monkeypatch):
    monkeypatch.setattr(quantising, 'exit_times', lambda engines, images: np.array(
        [[3.0, 4, 5, 6, 8], [1.5, 1, 2, 3, 2]]))
    steps = []
    found = compare(str(bundle.path), str(int8.path), 'scenes', None, '3', 4, threads=1,
                    report=lambda done, total: steps.append((done, total)))
    assert [exit_['name'] for exit_ in found['exits']] == list(EXITS)
    assert [exit_['speedup'] for exit_ in found['exits']] == [2, 4, 2.5, 2, 4] and found['speedup'] == 4
    assert found['miou_loss_pp'] == found['exits'][-1]['miou_loss_pp'] and abs(found['miou_loss_pp']) < 10
    assert steps == [(done, 8) for done in range(1, 9)]
    stored = json.loads((int8.path / 'bundle.json').read_text())['provenance']['int8']
    assert {key: stored[key] for key in found} == found and stored['of'] == 'tiny'
    assert Bundle.load(int8.path).fingerprint == int8.fingerprint


def test_times_are_per_engine_and_exit(bundle, int8, images):
    times = quantising.exit_times([Engine(bundle, threads=1), Engine(int8, threads=1)], images, rounds=1)
    assert times.shape == (2, 5) and (times > 0).all()


def test_what_cannot_be_is_refused(bundle, images, tmp_path):
    with pytest.raises(ValueError, match='is the float bundle itself'):
        quantise(bundle.path, bundle.path, images)
    with pytest.raises(ValueError, match='no images'):
        quantise(bundle.path, tmp_path / 'none', [])
