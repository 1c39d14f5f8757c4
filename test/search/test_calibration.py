# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Calibration: operating points are the cheapest points that keep the promise."""
import shutil

from ee_seg_ros.inference.bundle import OPERATING_POINTS, Bundle
from ee_seg_ros.search.calibration import calibrate, copy_calibration, operating_points


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


def test_curves_are_measured_stored_and_copied(tmp_path):
    for name in ('measured', 'copied'):
        shutil.copytree(Bundle.load('street').path, tmp_path / name)
    calibrate(str(tmp_path / 'measured'), 'scenes', None, '5', limit=4)
    measured = Bundle.load(tmp_path / 'measured')
    assert measured.document['calibration']['images'] == 4
    for criterion in ('entropy', 'region'):
        curve = measured.document['criteria'][criterion]['curve']
        costs = [entry['mean_macs'] for entry in curve]
        assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    copy_calibration(str(tmp_path / 'measured'), str(tmp_path / 'copied'))
    for point_name in OPERATING_POINTS:
        assert Bundle.load(tmp_path / 'copied').thresholds('region', point_name) == measured.thresholds(
            'region', point_name)
