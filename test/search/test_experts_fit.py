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

import numpy as np
import pytest
from tiny import CLASSES, HEIGHT, WIDTH, mixed_image, tiny_bundle

from ee_seg_ros.data.distortions import DISTORTIONS, distort
from ee_seg_ros.evaluation.evaluate import Observations, exit_costs
from ee_seg_ros.inference.bundle import OPERATING_POINTS, Bundle, BundleError
from ee_seg_ros.search import calibration, experts
from ee_seg_ros.search.calibration import copy_calibration, levels, promise, write_document
from ee_seg_ros.search.experts import broken_share, calibrate_experts, distorted, expert_points

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


def test_all_distortions_of_a_family_and_all_levels_come_in_turn():
    samples = [(mixed_image(seed), np.full((2, 2), seed, np.uint8)) for seed in range(9)]
    kinds = [kind for kind in DISTORTIONS.values() if kind.family == 'noise']
    settings = [(kind.name, level) for kind in kinds for level in kind.levels]
    found = list(distorted(samples, 'noise'))
    assert len(found) == 9 and [labels[0, 0] for _, labels in found[:3]] == [0, 1, 2]
    for index, (image, _) in enumerate(found):
        expected = distort(samples[index][0], *settings[index % len(settings)], index)
        np.testing.assert_array_equal(image, expected)


def test_a_promise_is_what_nine_of_ten_frames_settled_onboard_reach(bundle):
    right = [[0.1 + 0.08 * index] * 5 for index in range(11)]
    seen = observations(right, [[index, 9, 9, 9] for index in range(11)])
    ious = seen.matrices[:, 0]
    each = [np.mean([m[k, k] / (200 - m[k, k]) for k in range(CLASSES)]) for m in ious]
    assert promise(bundle, seen, 'entropy', [20.0, 0, 0, 0]) == pytest.approx(each[1])
    assert promise(bundle, seen, 'entropy', [2.5, 0, 0, 0]) == pytest.approx(np.quantile(each[:3], 0.1))
    assert promise(bundle, seen, 'entropy', [0.0] * 4) == pytest.approx(each[1])    # where none settles
    assert broken_share(bundle, seen, 'entropy', [20.0, 0, 0, 0], each[3]) == pytest.approx(3 / 11)
    assert broken_share(bundle, seen, 'entropy', [0.0] * 4, 1.0) == 0


def test_as_many_settle_as_without_the_expert_and_the_fewest_promises_are_broken(bundle):
    """Own heads settle six of ten; of the expert's, the six that it is sure of are right, and only these."""
    entropy = [[0.5, 9, 9, 9]] * 6 + [[2, 9, 9, 9]] * 4
    own = observations([[0.3, 0.3, 0.5, 0.5, 0.5]] * 10, entropy)
    seen = observations([[0.9, 0.9, 0.5, 0.5, 0.5]] * 7 + [[0.2, 0.2, 0.5, 0.5, 0.5]] * 3,
                        [[0.1 * (1 + index), 9, 9, 9] for index in range(10)], 'noise')
    for point in bundle.document['criteria']['entropy']['operating_points'].values():
        point.update(thresholds=[1.0, 0, 0, 0], promise=0.5)
    points = levels(bundle, seen, 'entropy')
    chosen = expert_points(bundle, 'entropy', points, seen, own)
    assert set(chosen) == set(OPERATING_POINTS)
    for point in chosen.values():
        assert point['promise'] == 0.5 and point['broken'] == 0
        assert point['forwarded_share'] in (pytest.approx(0.3), pytest.approx(0.4))
        assert point['without_expert']['broken'] == 1 and point['without_expert']['forwarded_share'] == 0.4
        assert point['mean_macs'] < exit_costs(bundle, 'noise')[-1]
    # Where more settled without it, the expert settles as many, though it breaks promises then.
    eager = observations([[0.3, 0.3, 0.5, 0.5, 0.5]] * 10, [[0.5, 9, 9, 9]] * 10)
    for point in expert_points(bundle, 'entropy', points, seen, eager).values():
        assert point['forwarded_share'] == 0 and 0 < point['broken'] <= 0.3


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
    assert stored['calibration']['images'] == 3
    changed = [row['name'] for row in stored['calibration']['exits'] if row['miou'] != row['miou_without_expert']]
    assert {'exit1', 'exit2'} <= set(changed) and stored['sharpening'] in experts.SHARPENING
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
