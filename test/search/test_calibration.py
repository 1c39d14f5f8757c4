# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Calibration: operating points are the cheapest points that keep the promise."""
import shutil

import numpy as np
import pytest
from tiny import CLASSES, tiny_bundle

from ee_seg_ros.evaluation.evaluate import Observations
from ee_seg_ros.inference.bundle import OPERATING_POINTS, Bundle, BundleError
from ee_seg_ros.search.calibration import calibrate, copy_calibration, curve, operating_points


def point(miou, macs):
    return {'thresholds': [macs], 'miou': miou, 'mean_macs': macs, 'onboard_miou': 0.0, 'forwarded_share': 0.0}


def test_cheapest_point_within_the_allowed_loss():
    curve = [point(0.70, 9.0), point(0.698, 7.0), point(0.692, 5.0), point(0.681, 3.0), point(0.60, 1.0)]
    chosen = operating_points(curve, full_miou=0.70)
    assert {name: chosen[name]['mean_macs'] for name in chosen} == {'accurate': 7.0, 'balanced': 5.0, 'fast': 3.0}


def test_a_cheap_point_that_is_good_by_chance_is_not_taken():
    curve = [point(0.70, 9.0), point(0.69, 7.0), point(0.60, 5.0), point(0.70, 3.0)]
    assert operating_points(curve, full_miou=0.70)['fast']['mean_macs'] == 7.0


def test_best_point_where_none_keeps_the_promise():
    assert operating_points([point(0.5, 1.0), point(0.6, 2.0)], full_miou=0.9)['accurate']['mean_macs'] == 2.0


def _copies(folder, *names):
    for name in names:
        shutil.copytree(Bundle.load('street').path, folder / name)
    return [str(folder / name) for name in names]


def test_curves_and_temperatures_are_measured_stored_and_copied(tmp_path):
    pytest.importorskip('torch', reason='torch is not installed (make train-env)')
    pytest.importorskip('ee_seg_ros.models.torchvision_compat')    # torchmetrics imports torchvision
    pytest.importorskip('torchmetrics', reason='torchmetrics is not installed (make train-env)')
    measured, copied = _copies(tmp_path, 'measured', 'copied')
    calibrate(measured, 'scenes', None, '5', limit=4, threads=1)
    bundle = Bundle.load(measured)
    stored = bundle.document['calibration']
    assert stored['images'] == 4 and len(stored['ece_before']) == len(stored['ece_after']) == len(bundle.exits)
    assert [entry['name'] for entry in stored['exits']] == [exit_.name for exit_ in bundle.exits]
    assert len({entry['miou'] for entry in stored['exits']}) == 4 and stored['exits'][-1]['miou'] == stored['full_miou']
    assert sum(stored['ece_after']) < sum(stored['ece_before'])
    assert any(exit_.temperature != 1 for exit_ in bundle.exits)
    for criterion in ('entropy', 'region'):
        curve = bundle.document['criteria'][criterion]['curve']
        costs, mious = ([entry[key] for entry in curve] for key in ('mean_macs', 'miou'))
        assert costs == sorted(costs, reverse=True) and mious == sorted(mious, reverse=True) and costs[0] > costs[-1]
    copy_calibration(measured, copied)
    for point_name in OPERATING_POINTS:
        assert Bundle.load(copied).thresholds('region', point_name) == bundle.thresholds('region', point_name)
    assert [exit_.temperature for exit_ in Bundle.load(copied).exits] == [exit_.temperature for exit_ in bundle.exits]


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
    points = curve(bundle, Observations(matrices, {'entropy': scores}), 'entropy')
    for point in points:
        first, last_onboard, *offboard = point['thresholds']
        assert offboard[0] == offboard[1]
        assert sum(point['offboard_exit_shares']) == pytest.approx(point['forwarded_share'])
    assert any(0 < point['offboard_exit_shares'][0] < point['forwarded_share'] for point in points)
    assert len({point['thresholds'][2] for point in points}) > 1
