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
"""Experts are calibrated on distorted images: they promise what the exits' own heads promise on clean ones."""
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny import CLASSES, HEIGHT, WIDTH, mixed_image, tiny_bundle
from tiny_detector import add_detector

from ee_seg_ros.data.distortions import DISTORTIONS, distort
from ee_seg_ros.evaluation.evaluate import Ends, Observations, cascade, exit_costs
from ee_seg_ros.inference.bundle import OPERATING_POINTS, Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.detector import Detector
from ee_seg_ros.search import calibration, experts
from ee_seg_ros.search.calibration import copy_calibration, promise, write_document
from ee_seg_ros.search.cascades import threshold_levels
from ee_seg_ros.search.experts import (
    as_run,
    calibrate_experts,
    choose_forwarding,
    copies,
    distorted,
    expert_criterion,
    expert_points,
    per_strength,
    strengths,
)

EXPERTS = {'noise': ('exit1', 'exit2')}


@pytest.fixture
def bundle(tmp_path):
    return Bundle.load(tiny_bundle(tmp_path / 'expert', experts=EXPERTS))


def observations(right, entropy, expert=''):
    """right: (n, 5) share of pixels that each exit gets right; entropy: (n, 4)."""
    hits = np.rint(100 * np.asarray(right, float)).astype(np.int64)
    matrices = np.zeros((*hits.shape, CLASSES, CLASSES + 1), np.int64)
    for number in range(CLASSES):
        matrices[..., number, number] = hits
        matrices[..., number, (number + 1) % CLASSES] = 100 - hits
    return Observations(matrices, {'entropy': np.asarray(entropy, float)}, expert=expert)


def test_all_distortions_of_a_family_and_all_levels_come_as_often():
    samples = [(mixed_image(seed), np.full((2, 2), seed, np.uint8)) for seed in range(6)]
    kinds = [kind for kind in DISTORTIONS.values() if kind.family == 'noise']
    settings = [(kind.name, level) for kind in kinds for level in kind.levels]
    rows = copies(6, 'noise')
    assert Counter(row[1:] for row in rows) == dict.fromkeys(settings, 6)
    assert Counter(row[0] for row in rows) == dict.fromkeys(range(6), 9) and len(set(rows)) == 54
    found = list(distorted(samples, 'noise'))
    assert len(found) == 54
    for (index, name, level), (image, labels) in zip(rows, found):
        assert labels[0, 0] == index
        np.testing.assert_array_equal(image, distort(samples[index][0], name, level, index))


def test_the_detector_says_how_strong_each_copy_is(bundle, tmp_path):
    samples = [(mixed_image(seed), None) for seed in range(2)]
    assert strengths(bundle, samples, 'noise').tolist() == [0.0] * 18    # there is no detector
    judged = Bundle.load(add_detector(tiny_bundle(tmp_path / 'judged', experts=EXPERTS)))
    seen = [Detector(judged).detect(image) for image, _ in distorted(samples, 'noise')]
    assert strengths(judged, samples, 'noise').tolist() == [
        found.level if found.family == 'noise' else 0.0 for found in seen]
    assert {found.family for found in seen} > {'noise'}    # and others


def test_score_and_strength_count_alike():
    strength = np.array([0, 0.5, 1, 0.2])
    assert per_strength(np.array([0.1, 0.3, 0.2, np.nan]), strength) == pytest.approx(0.2)
    assert per_strength(np.full(4, np.nan), strength) == per_strength(np.arange(4.0), np.full(4, 0.5)) == 0


def test_a_promise_is_what_nine_of_ten_frames_settled_onboard_reach(bundle):
    right = [[0.1 + 0.08 * index] * 5 for index in range(11)]
    seen = observations(right, [[index, 9, 9, 9] for index in range(11)])
    ious = seen.matrices[:, 0]
    each = [np.mean([m[k, k] / (200 - m[k, k]) for k in range(CLASSES)]) for m in ious]
    assert promise(bundle, seen, 'entropy', [20.0, 0, 0, 0]) == pytest.approx(each[1])
    assert promise(bundle, seen, 'entropy', [2.5, 0, 0, 0]) == pytest.approx(np.quantile(each[:3], 0.1))
    assert promise(bundle, seen, 'entropy', [0.0] * 4) == pytest.approx(each[1])    # where none settles


def test_as_many_settle_as_without_the_expert_and_the_fewest_promises_are_broken(bundle):
    """Own heads settle six of ten; of the expert's, the seven that it is surest of are right, and only these."""
    own = observations([[0.3, 0.3, 0.5, 0.5, 0.5]] * 10, [[0.5, 9, 9, 9]] * 6 + [[2, 9, 9, 9]] * 4)
    seen = observations([[0.9, 0.9, 0.5, 0.5, 0.5]] * 7 + [[0.2, 0.2, 0.5, 0.5, 0.5]] * 3,
                        [[0.1 * (1 + index), 9, 9, 9] for index in range(10)], 'noise')
    for point in bundle.document['criteria']['entropy']['operating_points'].values():
        point.update(thresholds=[1.0, 0, 0, 0], promise=0.5)
    points = [{'thresholds': list(level), **cascade(bundle, seen, 'entropy', level)}
              for level in threshold_levels(CRITERIA['entropy'], seen.scores['entropy'], 2)]
    same = np.zeros(10, int)    # all of one image: its resamples are all alike
    chosen = expert_points(bundle, 'entropy', points, seen, own, same)
    assert set(chosen) == set(OPERATING_POINTS)
    for point in chosen.values():
        assert point['promise'] == 0.5 and point['broken'] == 0
        assert point['forwarded_share'] in (pytest.approx(0.3), pytest.approx(0.4))
        assert point['without_expert']['broken'] == 1 and point['without_expert']['forwarded_share'] == 0.4
        assert point['mean_macs'] < exit_costs(bundle, 'noise')[-1]
    # Where more settled without it, the expert settles as many, though it breaks promises then.
    eager = observations([[0.3, 0.3, 0.5, 0.5, 0.5]] * 10, [[0.5, 9, 9, 9]] * 10)
    for point in expert_points(bundle, 'entropy', points, seen, eager, same).values():
        assert point['forwarded_share'] == 0 and point['broken'] == pytest.approx(0.3)
    # Which images settle differs: of ten images some resamples have fewer that the expert settles, unless it settles
    # more of them.
    other = observations([[0.3, 0.3, 0.5, 0.5, 0.5]] * 10, [[2, 9, 9, 9]] * 4 + [[0.5, 9, 9, 9]] * 6)
    for point in expert_points(bundle, 'entropy', points, seen, other, np.arange(10)).values():
        assert point['forwarded_share'] < 0.3


@pytest.mark.parametrize('forwarding, places', [
    ({'up_to': 0.5, 'last_exit': 'exit4'}, (3, 3, 1)), ({'up_to': 1.0, 'last_exit': 'exit3'}, (2, 2, 2)),
    (None, (1, 1, 1)), ({'up_to': 0.0, 'last_exit': 'final'}, (4, 1, 1))])
def test_what_would_run_in_vain_does_not_count(bundle, monkeypatch, forwarding, places):
    """Neither what comes behind the best exit offboard, nor any of them where the onboard ones are better."""
    seen, strength = observations([[0.3, 0.4, 0.5, 0.6, 0.7]] * 3, [[0, 0, 0, 0]] * 3, 'noise'), np.array([0, 0.5, 1])
    monkeypatch.setitem(bundle.document['experts']['noise'], 'forwarding', forwarding)
    found, costs = as_run(bundle, seen, strength), exit_costs(bundle, 'noise')
    np.testing.assert_array_equal(found.matrices, seen.matrices)    # of each exit alone
    for exit_ in range(5):
        ends = [min(exit_, place) for place in places]
        np.testing.assert_array_equal(found.matrices_of('entropy', np.full(3, exit_)), seen.matrices[range(3), ends])
        np.testing.assert_array_equal(found.macs_of(bundle, 'entropy')[:, exit_], [costs[end] for end in ends])
    again = as_run(bundle, found, strength)    # what is known of the ends is cut
    np.testing.assert_array_equal(again.ends['entropy'].matrices, found.ends['entropy'].matrices)
    for point in bundle.document['criteria']['entropy']['operating_points'].values():
        point.update(thresholds=[0.0] * 4, promise=0.5)
    point = expert_criterion(bundle, 'entropy', found, seen, strength, np.zeros(3, int))['curve'][0]
    assert point['forwarded_share'] == sum(place > 1 for place in places) / 3    # none settles


def test_frames_are_forwarded_as_long_as_that_pays(bundle):
    """Exit4 is the best of the mildest half; from there on the last one onboard is."""
    strength = np.array([0.9, 0.1, 0.3, 0.6, 0.1, 0.6])
    mild, hard = [0.3, 0.4, 0.5, 0.6, 0.5], [0.3, 0.4, 0.3, 0.2, 0.1]
    seen = observations([hard, mild, mild, hard, mild, hard], [[0] * 4] * 6, 'noise')
    found = choose_forwarding(bundle, seen, strength)
    assert (found['up_to'], found['last_exit']) == (0.3, 'exit4')
    assert found['miou'] > found['miou_without'] == pytest.approx(0.4 / 1.6)
    # Frames of one strength are forwarded, all of them, or none.
    seen = observations([hard, mild, mild, mild, mild, hard], [[0] * 4] * 6, 'noise')
    assert choose_forwarding(bundle, seen, strength)['up_to'] in (0.3, 0.6)
    assert choose_forwarding(bundle, observations([hard] * 6, [[0] * 4] * 6, 'noise'), strength) is None
    # As they really ran, where that is known: with labels of the robot in cells that were not sent.
    ends = {'entropy': Ends(observations([hard] * 6, [[0] * 4] * 6).matrices, np.zeros((6, 5)), np.zeros(6, int))}
    assert choose_forwarding(bundle, replace(seen, ends=ends), strength) is None


def test_thresholds_are_those_of_the_mildest_distortions(bundle):
    """Of two images with the same score, the one that is distorted more is the worse one."""
    strength = np.tile([0.0, 1.0], 5)
    right = [[0.9, 0.9, 0.5, 0.5, 0.5], [0.2, 0.2, 0.5, 0.5, 0.5]] * 5
    entropy = [[0.5 + 0.1 * (index // 2), 0.5 + 0.1 * (index // 2), 9, 9] for index in range(10)]
    own, seen = observations(right, entropy), observations(right, entropy, 'noise')
    for point in bundle.document['criteria']['entropy']['operating_points'].values():
        point.update(thresholds=[0.75, 0.0, 0, 0], promise=0.5)    # settle six, half of them wrongly
    images = np.zeros(10, int)
    flat = expert_criterion(bundle, 'entropy', seen, own, 0 * strength, images)
    found = expert_criterion(bundle, 'entropy', seen, own, strength, images)
    assert flat['per_strength'] == 0 and flat['operating_points']['fast']['broken'] >= 0.5
    assert found['per_strength'] == pytest.approx(np.std(seen.scores['entropy'][:, 1]) / 0.5, abs=1e-6)
    assert found['operating_points']['fast']['broken'] < 0.3
    assert found['curve'] and found['direction'] == 'below'
    assert seen.scores['entropy'][1, 0] == 0.5    # untouched


def test_measured_stored_and_copied(tmp_path, monkeypatch):
    pytest.importorskip('torch', reason='torch is not installed (make train-env)')
    pytest.importorskip('ee_seg_ros.models.torchvision_compat')    # torchmetrics imports torchvision
    pytest.importorskip('torchmetrics', reason='torchmetrics is not installed (make train-env)')
    measured, copied, other = (tiny_bundle(tmp_path / name, experts=who) for name, who in
                               (('measured', EXPERTS), ('copied', EXPERTS), ('other', None)))
    bundle = Bundle.load(measured)
    for criterion in bundle.document['criteria'].values():
        for point in criterion['operating_points'].values():
            point['promise'] = 0.2
    labels = np.random.default_rng(0).integers(0, CLASSES, (HEIGHT // 8, WIDTH // 8)).astype(np.uint8)
    labels = np.kron(labels, np.ones((8, 8), np.uint8))
    samples = [(mixed_image(seed), labels) for seed in range(3)]
    calibrate_experts(bundle, samples, 1)
    write_document(bundle)
    bundle = Bundle.load(measured)
    stored = bundle.document['experts']['noise']
    assert stored['calibration']['images'] == 27    # nine copies of each
    changed = [row['name'] for row in stored['calibration']['exits'] if row['miou'] != row['miou_without_expert']]
    assert {'exit1', 'exit2'} <= set(changed) and {key: stored[key] for key in experts.AS_IT_IS} in (
        experts.AS_IT_IS, experts.SMOOTHED)    # without a detector nothing is deblurred
    assert stored['exits']['exit1']['temperature'] != 2.0
    for criterion in ('entropy', 'region', 'confidence'):
        assert stored['criteria'][criterion]['curve']
        assert bundle.thresholds(criterion, 'fast', 'noise') == tuple(
            stored['criteria'][criterion]['operating_points']['fast']['thresholds'])
    copy_calibration(str(measured), str(copied))
    assert json.loads((copied / 'bundle.json').read_text())['experts'] == bundle.document['experts']
    with pytest.raises(BundleError, match='export both with --experts, or neither'):
        copy_calibration(str(measured), str(other))
    with pytest.raises(BundleError, match='give --split to measure them on'):
        copy_calibration(str(other), str(copied))
    monkeypatch.setattr(calibration, 'samples_of', lambda *given: (3, iter(samples)))    # the first bundle has none
    copy_calibration(str(other), str(copied), split='7', threads=1)
    document = json.loads((copied / 'bundle.json').read_text())
    assert document['experts']['noise']['calibration'] == stored['calibration']
    assert all(0 <= point['promise'] <= 1 for entry in document['criteria'].values()
               for point in entry['operating_points'].values())
