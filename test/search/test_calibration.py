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
"""Calibration: operating points are the cheapest points that keep the promise."""
import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import CLASSES, HEIGHT, WIDTH, tiny_bundle

from ee_seg_ros.evaluation.evaluate import Observations, observe, to_the_end
from ee_seg_ros.evaluation.metrics import mean_iou
from ee_seg_ros.inference.bundle import OPERATING_POINTS, Bundle, BundleError
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.search import calibration, gain
from ee_seg_ros.search.calibration import (
    LOSSES,
    calibrate,
    copy_calibration,
    cross_validated,
    curve,
    levels,
    loss_bound,
    operating_points,
)


def point(bound, macs):
    return {'thresholds': [macs], 'miou': 0.7 - bound, 'mean_macs': macs, 'loss_bound': bound, 'onboard_miou': 0.0,
            'forwarded_share': 0.0}


def test_cheapest_point_within_the_allowed_loss():
    chosen = operating_points([point(0.0, 9.0), point(0.002, 7.0), point(0.008, 5.0), point(0.019, 3.0), point(0.1, 1)])
    assert {name: chosen[name]['mean_macs'] for name in chosen} == {'accurate': 7.0, 'balanced': 5.0, 'fast': 3.0}


def test_a_curve_has_the_best_of_each_step_of_cost():
    points = [point(0.3, 1.0), point(0.1, 1.001), point(0.2, 5.0), point(0.25, 5.001), point(0.0, 101.0)]
    assert [entry['mean_macs'] for entry in curve(points)] == [101.0, 5.0, 1.001]


def test_best_point_where_none_keeps_the_promise():
    assert operating_points([point(0.4, 1.0), point(0.3, 3.0), point(0.3, 2.0)])['accurate']['mean_macs'] == 2.0


def test_the_bound_on_the_loss_grows_with_what_chance_may_have_done():
    """Two exits that are equally good on average: alike on every image, or now one and now the other."""
    right, wrong = np.diag([90, 10, 0]), np.full((3, 3), 5) + np.diag([70, 5, 0])
    wide = np.pad(np.stack([right, wrong]), ((0, 0), (0, 0), (0, 1)))
    whole = wide[[0, 1] * 10]
    weights = np.random.default_rng(0).multinomial(20, [1 / 20] * 20, 400)
    full = np.array([mean_iou(np.tensordot(each, whole, 1)) for each in weights])
    assert loss_bound(whole, full, weights) == 0
    assert 0.01 < loss_bound(wide[[1, 0] * 10], full, weights)
    assert loss_bound(wide[[0] * 20], full, weights) < 0


def test_a_cross_validated_curve_does_not_flatter_a_criterion_that_knows_nothing(tmp_path):
    """Random scores: on the frames that they were chosen on, some thresholds seem to tell good frames from bad."""
    bundle, rng, count = Bundle.load(tiny_bundle(tmp_path / 'tiny')), np.random.default_rng(2), 40
    right = rng.uniform(size=(count, 5)) < [0.5, 0.5, 0.5, 0.5, 0.6]
    matrices = np.where(right[..., None, None], np.eye(3, 4) * 40 + 1, np.full((3, 4), 11.0)).astype(np.int64)
    observed = Observations(matrices, {'entropy': rng.uniform(size=(count, 4)),
                                       'confidence': np.broadcast_to(right[:, :-1], (count, 4)).astype(float)})
    random, knowing = (cross_validated(bundle, observed, name) for name in ('entropy', 'confidence'))
    whole, full_cost = mean_iou(matrices[:, -1].sum(0)), sum(graph['macs'] for graph in bundle.graphs.values())
    assert random['full_miou'] == whole and random['full_macs'] == full_cost
    random, knowing = random['points'], knowing['points']
    assert [point['loss'] for point in random] == list(LOSSES)
    in_sample = max(point['miou'] for point in levels(bundle, observed, 'entropy'))
    assert max(point['miou'] for point in random) < in_sample > whole
    assert all(point['miou'] > whole and point['mean_macs'] < full_cost for point in knowing)


def test_copies_of_a_frame_are_in_one_block(tmp_path, monkeypatch):
    """Twice the same frame is as good as once: no copy helps to choose the thresholds that the other is judged by."""
    bundle, rng = Bundle.load(tiny_bundle(tmp_path / 'tiny')), np.random.default_rng(3)
    matrices, scores = rng.integers(1, 60, (7, 5, CLASSES, CLASSES + 1)), rng.uniform(size=(7, 4))
    tried = np.sort(rng.uniform(size=(60, 4)), 0)
    monkeypatch.setattr(calibration, 'threshold_levels', lambda *given: tried)
    once = cross_validated(bundle, Observations(matrices, {'entropy': scores}), 'entropy')
    twice = cross_validated(bundle, Observations(matrices.repeat(2, 0), {'entropy': scores.repeat(2, 0)}), 'entropy', 2)
    assert twice == once and len({point['miou'] for point in once['points']}) > 1


def _copies(folder, *names):
    for name in names:
        shutil.copytree(Bundle.load('street').path, folder / name)
    return [str(folder / name) for name in names]


def test_curves_and_temperatures_are_measured_stored_and_copied(tmp_path, monkeypatch):
    pytest.importorskip('torch', reason='torch is not installed (make train-env)')
    pytest.importorskip('ee_seg_ros.models.torchvision_compat')    # torchmetrics imports torchvision
    pytest.importorskip('torchmetrics', reason='torchmetrics is not installed (make train-env)')
    measured, copied = _copies(tmp_path, 'measured', 'copied')
    monkeypatch.setattr(gain, 'COPIES', 1)
    observed = {}

    def noted(engine, samples, report):
        observed.update(bundle=engine.bundle, found=observe(engine, samples, report))
        return replace(observed['found'], scores=dict(observed['found'].scores))
    monkeypatch.setattr(calibration, 'observe', noted)
    calibrate(measured, 'scenes', None, '5', limit=4, threads=1)
    bundle = Bundle.load(measured)
    stored = bundle.document['calibration']
    assert stored['images'] == 4 and len(stored['ece_before']) == len(stored['ece_after']) == len(bundle.exits)
    assert [entry['name'] for entry in stored['exits']] == [exit_.name for exit_ in bundle.exits]
    assert len({entry['miou'] for entry in stored['exits']}) == len(bundle.exits)
    assert stored['exits'][-1]['miou'] == stored['full_miou']
    assert sum(stored['ece_after']) < sum(stored['ece_before'])
    assert any(exit_.temperature != 1 for exit_ in bundle.exits)
    for criterion in ('entropy', 'region', 'gain'):
        curve = bundle.document['criteria'][criterion]['curve']
        costs, mious = ([entry[key] for entry in curve] for key in ('mean_macs', 'miou'))
        assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1] and len(set(mious)) > 1
    # Thresholds of gain are from scores of models that did not see the image; they are one for all exits.
    in_sample = levels(observed['bundle'], observed['found'], 'gain')
    stored_points = bundle.document['criteria']['gain']
    assert all(len(set(point['thresholds'])) == 1 for point in stored_points['curve'])
    assert stored_points['curve'][0]['thresholds'] != in_sample[0]['thresholds']
    assert set(bundle.gain) == {exit_.name for exit_ in bundle.judged_exits}
    copy_calibration(measured, copied)
    assert Bundle.load(copied).document['gain'] == bundle.document['gain']
    for point_name in OPERATING_POINTS:
        assert Bundle.load(copied).thresholds('region', point_name) == bundle.thresholds('region', point_name)
    assert [(exit_.temperature, exit_.averaged) for exit_ in Bundle.load(copied).exits] == [
        (exit_.temperature, exit_.averaged) for exit_ in bundle.exits]


@pytest.mark.parametrize('right, expected', [
    ((3, 4), [False, False, False, True, True]), ((3,), [False, False, False, True, False]),
    ((4,), [False] * 5), ((), [False] * 5)])
def test_exits_are_averaged_where_that_is_better_as_far_as_all_before_them_are(tmp_path, monkeypatch, right, expected):
    """Behind the split lie exit3, exit4 and final; right is the mean at the exits in `right`, else their own output."""
    bundle = Bundle.load(tiny_bundle(tmp_path / 'tiny'))
    documents = [copy.deepcopy(bundle.document) for _ in range(2)]
    for entry in documents[1]['exits'][3:]:
        entry['averaged'] = True
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    own, mean = ([output.mask(WIDTH, HEIGHT) for output in to_the_end(
        Engine(Bundle(bundle.path, document), threads=1), image).outputs] for document in documents)
    masks = {place: (mean if place in right else own)[place] for place in (3, 4)}
    assert all((own[place] != mean[place]).any() for place in (3, 4))
    monkeypatch.setattr(calibration, 'confusion', lambda labels, mask, classes: 1000 * np.eye(
        CLASSES, CLASSES + 1, dtype=int) + (not any((mask == each).all() for each in masks.values())))
    found = calibration.choose_averaged(bundle, [(image, masks[3])], 1)
    assert [exit_.averaged for exit_ in found.exits] == expected


def test_single_pixels_are_not_copied_without_mean_features_nor_measured_without_cells(tmp_path):
    pytest.importorskip('torch', reason='torch is not installed (make train-env)')
    pytest.importorskip('ee_seg_ros.models.torchvision_compat')    # torchmetrics imports torchvision
    pytest.importorskip('torchmetrics', reason='torchmetrics is not installed (make train-env)')
    for name, change in (('bare', lambda document: document['codec'].pop('class_means')),
                         ('whole', lambda document: document.update(cells=None))):
        folder, = _copies(tmp_path, name)
        path = Path(folder) / 'bundle.json'
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match='give --statistics, the split that it was trained on'):
        copy_calibration('street', str(tmp_path / 'bare'))
    with pytest.raises(BundleError, match='has no cells, which single pixels need'):
        calibrate(str(tmp_path / 'whole'), 'scenes', None, '5', limit=2, threads=1, statistics='6')


def test_a_bundle_with_other_exits_is_refused(tmp_path):
    tiny = str(tiny_bundle(tmp_path / 'tiny'))
    with pytest.raises(BundleError, match='different exits'):
        copy_calibration(tiny, _copies(tmp_path, 'street')[0])


def test_exits_behind_the_split_have_thresholds_of_their_own(tmp_path):
    bundle = Bundle.load(tiny_bundle(tmp_path / 'tiny'))
    rng = np.random.default_rng(4)
    scores = rng.uniform(size=(9, 4))
    matrices = rng.integers(1, 50, (9, 5, CLASSES, CLASSES + 1))
    matrices[..., np.arange(CLASSES), np.arange(CLASSES)] += 100 * np.arange(5)[None, :, None]    # deeper is better
    points = curve(levels(bundle, Observations(matrices, {'entropy': scores}), 'entropy'))
    for point in points:
        first, last_onboard, *offboard = point['thresholds']
        assert offboard[0] == offboard[1]
        assert sum(point['offboard_exit_shares']) == pytest.approx(point['forwarded_share'])
    assert any(0 < point['offboard_exit_shares'][0] < point['forwarded_share'] for point in points)
    assert len({point['thresholds'][2] for point in points}) > 1
