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
"""The criterion `gain` against values worked out by hand, and in bundles with and without its model."""
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from tiny import CLASSES, EXITS, HEIGHT, WIDTH, tiny_bundle

from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.frame import Placement
from ee_seg_ros.inference.gain import expected_gain, statistics
from ee_seg_ros.inference.outputs import ExitOutput

RULE = CRITERIA['gain']


def model(bias=1.0, weight=2.0):
    return {'exits': {name: {'later': list(EXITS[place + 1:]), 'bias': [bias + place] * (4 - place),
                             'weights': [[weight] * CLASSES] * (4 - place)} for place, name in enumerate(EXITS[:-1])}}


def edit(folder, change):
    document = json.loads((folder / 'bundle.json').read_text())
    change(document)
    (folder / 'bundle.json').write_text(json.dumps(document))
    return folder


def offer(document):
    document['gain'] = model()
    document['criteria']['gain'] = RULE.entry(4)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'plain'))


@pytest.fixture(scope='module')
def offering(tmp_path_factory):
    return Bundle.load(edit(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'offering'), offer))


@pytest.fixture(scope='module')
def image():
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def sampled(logits, temperature=1.0, gain=None):
    """An output with these logits, float (C, pixels)."""
    return SimpleNamespace(sampled_logits=np.array(logits, np.float32)[:, None],
                           exit=SimpleNamespace(name='exit1', temperature=temperature),
                           bundle=SimpleNamespace(gain=gain or {}))


def test_statistics_are_each_class_s_doubt():
    # Pixels: class 0 with p = 3/4, class 1 with p = 1/2 (of three: 1/4, 1/2, 1/4), class 1 for sure, none of class 2.
    probabilities = np.array([[3 / 4, 1 / 8, 1 / 8], [1 / 4, 1 / 2, 1 / 4], [1e-9, 1, 1e-9], [1e-9, 1, 1e-9]]).T
    assert statistics(sampled(np.log(probabilities))) == pytest.approx([0.25 / 4, 0.5 / 4, 0], abs=1e-6)


def test_statistics_are_taken_at_the_calibrated_temperature():
    logits = 2 * np.log(np.array([[3 / 4, 1 / 4]]).T)
    assert statistics(sampled(logits, 2.0)) == pytest.approx([1 / 4, 0])
    assert statistics(sampled(logits)) == pytest.approx([1 / 10, 0])    # 9 to 1


@pytest.mark.parametrize('stride, step', [(4, 4), (8, 2), (16, 1)])
def test_every_sixteenth_pixel_within_the_content_is_read(stride, step):
    width, height = 128, 96
    bundle = SimpleNamespace(width=width)
    logits = np.random.default_rng(1).normal(size=(3, height // stride, width // stride)).astype(np.float32)
    place = Placement(1, 1, 100, 70)
    output = ExitOutput(bundle, SimpleNamespace(temperature=1.0), logits, place)
    rows, columns = -(-place.content_height // stride), -(-place.content_width // stride)
    assert np.array_equal(output.sampled_logits, logits[:, :rows:step, :columns:step])
    changed = logits.copy()
    changed[:, rows:], changed[:, :, columns:] = 99, 99    # padding
    assert np.array_equal(statistics(output), statistics(ExitOutput(bundle, output.exit, changed, place)))


def test_an_exit_of_a_coarser_stride_is_resized_to_every_sixteenth_pixel():
    logits = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    output = ExitOutput(SimpleNamespace(width=128), SimpleNamespace(temperature=1.0), logits, Placement(1, 1, 100, 70))
    np.testing.assert_allclose(output.sampled_logits[0, :, :3], cv2.resize(logits[0], (8, 6))[:5, :3])
    assert output.sampled_logits.shape == (1, 5, 7)


def test_the_largest_gain_of_all_later_exits_counts():
    output = sampled(np.log([[0.5], [0.25], [0.25]]), gain={
        'exit1': (np.array([1.0, -2.0]), np.array([[1.0, 9.0, 9.0], [8.0, 9.0, 9.0]]))})
    assert expected_gain(output) == pytest.approx(max(1 + 0.5 * 1, -2 + 0.5 * 8))
    assert RULE.judge([output], 2.1) == (pytest.approx(2.0), True)
    assert RULE.judge([output], 1.9) == (pytest.approx(2.0), False)


def test_a_bundle_without_the_model_does_not_offer_it(plain, image):
    assert 'gain' not in plain.criteria and plain.gain == {}
    with pytest.raises(BundleError, match="no criterion 'gain'"):
        plain.thresholds('gain', 'fast')
    result = Engine(plain, threads=1).segment(image, 'never')
    assert RULE.judge(result.outputs, np.inf) == (None, False)


def test_the_engine_stops_where_the_gain_is_not_worth_its_cost(offering, image):
    engine = Engine(offering, threads=1)
    whole = engine.segment(image, 'gain', (-np.inf,) * 4)
    doubt = [statistics(output).sum() for output in whole.outputs]
    assert all(0 < each < 1 for each in doubt) and not whole.settled
    assert whole.score == pytest.approx(2 + 2 * doubt[1])    # of the second exit, whose bias is 2
    assert engine.segment(image, 'gain', (1.01 + 2 * doubt[0],) * 4).exit_name == 'exit1'
    rest = engine.finish(engine.encode(whole), whole.placement, 'gain', (0, 0, 9, 0))
    assert rest.exit_name == 'exit3' and rest.settled    # it needs no exit before it on its side
    last = engine.finish(engine.encode(whole), whole.placement, 'gain', (0, 0, 0, 0))
    assert last.exit_name == 'final' and not last.settled


@pytest.mark.parametrize('change, message', [
    (lambda gain: gain['exits'].pop('exit2'), 'models of the exits exit1, exit3, exit4, expected one of each but the'),
    (lambda gain: gain['exits'].update(final=gain['exits']['exit4']), 'expected one of each but the last'),
    (lambda gain: gain['exits']['exit1']['later'].reverse(), 'exit1 speaks of final, .* expected the exits behind it'),
    (lambda gain: gain['exits']['exit3']['bias'].pop(), 'exit3 must have a bias and 3 weights'),
    (lambda gain: gain['exits']['exit4']['weights'][0].append(1.0), 'exit4 must have a bias and 3 weights'),
    (lambda gain: gain['exits']['exit4'].pop('bias'), "gain/exits/exit4: 'bias' is a required property"),
    (lambda gain: gain['exits']['exit4'].update(bias=['much']), "gain/exits/exit4/bias/0: 'much' is not of type"),
])
def test_a_model_that_does_not_fit_the_bundle_is_explained(tmp_path, change, message):
    folder = edit(tiny_bundle(tmp_path / 'tiny'), offer)
    edit(folder, lambda document: change(document['gain']))
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


def test_thresholds_without_the_model_are_refused(tmp_path):
    folder = edit(edit(tiny_bundle(tmp_path / 'tiny'), offer), lambda document: document.pop('gain'))
    with pytest.raises(BundleError, match='not the model `gain`.*calibrate'):
        Bundle.load(folder)
