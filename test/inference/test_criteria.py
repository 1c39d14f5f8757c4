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
"""Criteria against values worked out by hand."""
from types import SimpleNamespace

import numpy as np
import pytest

from ee_seg_ros.inference.criteria import (
    CRITERIA,
    changed_share,
    confident_pixels,
    confident_share,
    normalised_entropy,
    variation_of_information,
)
from ee_seg_ros.inference.outputs import softmax


def probabilities(*pixels):
    return np.array(pixels, np.float32).T[:, None, :]


def test_entropy_is_one_for_uniform_and_zero_for_certain():
    assert normalised_entropy(probabilities([0.25] * 4)) == pytest.approx(1.0)
    assert normalised_entropy(probabilities([1, 0, 0, 0])) == pytest.approx(0.0, abs=1e-6)


def test_entropy_is_the_mean_over_pixels():
    # Half a bit's worth: {1/2, 1/2} of 4 classes is ln 2 / ln 4 = 0.5; with a certain pixel beside it 0.25.
    assert normalised_entropy(probabilities([0.5, 0.5, 0, 0], [1, 0, 0, 0])) == pytest.approx(0.25)


def test_variation_of_information_by_hand():
    # 4 pixels, one region splits into two halves: H(after | before) = 1 bit, H(before | after) = 0.
    assert variation_of_information(np.array([[0, 0, 0, 0]], np.uint8),
                                    np.array([[0, 0, 1, 1]], np.uint8)) == pytest.approx(1.0)
    # Independent halves: 1 bit each way.
    assert variation_of_information(np.array([[0, 0, 1, 1]], np.uint8),
                                    np.array([[0, 1, 0, 1]], np.uint8)) == pytest.approx(2.0)
    # One of four pixels moves from region 0 to region 1: p = 1/4, 1/4, 1/2.
    expected = -(0.25 * np.log2(0.5) + 0.25 * np.log2(0.5)) - (0.25 * np.log2(1 / 3) + 0.5 * np.log2(2 / 3))
    assert variation_of_information(np.array([[0, 0, 1, 1]], np.uint8),
                                    np.array([[0, 1, 1, 1]], np.uint8)) == pytest.approx(expected)


def test_variation_of_information_is_blind_to_labels_and_changed_share_is_not():
    before, after = np.array([[3, 3, 4, 4]], np.uint8), np.array([[4, 4, 9, 9]], np.uint8)
    assert variation_of_information(before, after) == 0.0
    assert changed_share(before, after) == 1.0
    assert changed_share(before, np.array([[3, 3, 4, 9]], np.uint8)) == 0.25


def test_confident_share_counts_pixels_at_or_above_the_threshold():
    row = np.array([[0.95, 0.9, 0.8, 0.99]], np.float32)
    maps = np.stack([row, 1 - row])    # one class wins everywhere: no borders
    assert confident_share(maps, 0.9) == 0.75


def test_confident_share_takes_the_median_at_borders():
    top = np.full((5, 6), 0.95, np.float32)
    top[2, 2] = 0.6
    first = np.where(np.arange(6) < 3, top, 1 - top).astype(np.float32)
    assert confident_share(np.stack([first, 1 - first]), 0.9) == 1.0    # its neighbours outvote the weak pixel


def outputs(*maps):
    return [SimpleNamespace(sampled_classes=np.array(m, np.uint8)) for m in maps]


@pytest.mark.parametrize('name', ['region', 'region_change'])
def test_comparing_criteria_never_fire_at_the_first_exit(name):
    rule = CRITERIA[name]
    assert rule.judge(outputs([[1, 1]]), 1e9) == (None, False)
    score, settled = rule.judge(outputs([[1, 1]], [[1, 1]]), 0.1)
    assert score == 0.0 and settled
    assert not rule.judge(outputs([[1, 1]], [[1, 2]]), 0.1)[1]


def test_directions():
    assert CRITERIA['entropy'].settles(0.1, 0.2) and not CRITERIA['entropy'].settles(0.2, 0.2)
    assert CRITERIA['confidence'].settles(0.2, 0.2) and not CRITERIA['confidence'].settles(0.1, 0.2)


@pytest.mark.parametrize('temperature', [1.0, 0.5, 3.0])
def test_a_pixel_stops_where_its_top_probability_exceeds_the_limit_of_its_class(temperature):
    logits = np.random.default_rng(0).normal(0, 2, (4, 30, 40)).astype(np.float32)
    before, found = logits.copy(), softmax(logits.astype(np.float64), temperature)
    tops = [np.sort(found.max(0)[found.argmax(0) == number]) for number in range(4)]
    limits = np.array([(top[len(top) // 2 - 1] + top[len(top) // 2]) / 2 for top in tops], np.float32)
    stopped, doubt = confident_pixels(logits, temperature, limits)
    np.testing.assert_allclose(doubt, 1 - found.max(0), atol=1e-6)
    np.testing.assert_array_equal(stopped, found.max(0) > limits[found.argmax(0)])
    np.testing.assert_array_equal(logits, before)
    for number, top in enumerate(tops):    # half of each class
        assert np.count_nonzero(stopped[found.argmax(0) == number]) == (len(top) + 1) // 2


def test_doubt_weighs_what_the_class_on_top_weighs():
    logits = np.array([[5, 1, 5], [1, 5, 5], [0, 0, 0]], np.float32)[:, None]
    limits, weights = np.full(3, 0.99), np.array([0.5, 4.0, 9.0])
    stopped, doubt = confident_pixels(logits, 1.0, limits)
    weighed = confident_pixels(logits, 1.0, limits, weights)
    np.testing.assert_array_equal(weighed[0], stopped)
    np.testing.assert_allclose(weighed[1], doubt * [0.5, 4.0, 4.5], rtol=1e-6)    # their sum where two are on top


def test_a_pixel_between_two_classes_does_not_stop():
    """Two classes of one logit have 0.5 each, which is never above the sum of two limits that are worth the name.

    Equal logits are common with weights in int8.
    """
    logits = np.array([[5, 5, 5], [5, -9, 5], [-9, -9, 5]], np.float32)[:, None]
    assert confident_pixels(logits, 1.0, np.array([0.9, 0.8, 0.95]))[0].tolist() == [[False, True, False]]
    assert confident_pixels(logits, 1.0, np.array([0.3, 0.4, 0.4]))[0].tolist() == [[False, True, False]]


@pytest.mark.parametrize('limit, expected', [(0.0, True), (1.0, False)])
def test_limits_that_stop_all_and_none(limit, expected):
    logits = np.array([[0, 50, 200], [0, 0, 0]], np.float32)[:, None]
    assert (confident_pixels(logits, 1.0, np.full(2, limit))[0] == expected).all()


@pytest.mark.parametrize('name', ['class_threshold', 'uniform'])
def test_criteria_of_pixels_settle_by_the_share_that_has_stopped(name):
    rule = CRITERIA[name]
    assert rule.pixelwise and rule.needs == 'pixels'
    assert rule.judge([SimpleNamespace(stopped_share=0.75)], 0.75) == (0.75, True)
    assert rule.judge([SimpleNamespace(stopped_share=1.0), SimpleNamespace(stopped_share=0.5)], 0.75) == (0.5, False)
    assert rule.judge([SimpleNamespace(stopped_share=None)], 0.0) == (None, False)    # whole frames stop


def test_entries_say_what_a_criterion_is_before_anything_is_measured():
    entry = CRITERIA['class_threshold'].entry(3)
    assert set(entry) == {'direction', 'thresholds', 'curve', 'operating_points'} and entry['direction'] == 'above'
    assert [point['thresholds'] for point in entry['operating_points'].values()] == [[0.0] * 3] * 3


def test_always_and_never():
    assert CRITERIA['always'].judge([None], 0.0) == (None, True)
    assert CRITERIA['never'].judge([None, None, None], 0.0) == (None, False)
