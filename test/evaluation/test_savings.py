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
"""What a criterion costs and saves at equal mIoU: curves worked out by hand, and the bootstrap around them."""
import numpy as np
import pytest

from ee_seg_ros.evaluation.metrics import mean_iou
from ee_seg_ros.evaluation.savings import (
    RESAMPLES,
    Outcome,
    Sweep,
    best_by_fit,
    claims_of,
    cost_at,
    intervals,
    resampled_mious,
    resamples,
    saving,
    sweep,
)


@pytest.mark.parametrize('wanted, cost', [
    (0.5, 10.0),      # only the whole network reaches it
    (0.46, 8.4),      # between the first two points: 0.4 of the way from 10 to 6
    (0.45, 4.0),      # a point itself
    (0.425, 3.7),     # three lines cross it, at 7, 5 and 3.7
    (0.3, 2.2),       # also two points reach it
    (0.1, 1.0),       # every point does
    (0.51, np.nan)])
def test_the_least_cost_of_a_curve_by_hand(wanted, cost):
    mious, costs = np.array([[0.5, 0.4, 0.45, 0.2]]), np.array([[10.0, 6.0, 4.0, 1.0]])
    assert cost_at(mious, costs, np.array([[wanted]])) == pytest.approx(np.array([[cost]]), nan_ok=True)


def test_neighbours_are_those_of_the_stored_order_and_every_resample_has_its_own_curve():
    """Sorted by cost, 0.45 would be met between 10 and 5. The second curve is flat: nothing crosses it."""
    mious = np.array([[0.5, 0.2, 0.4, 0.4], [0.5, 0.5, 0.5, 0.5]])
    costs = np.array([[10.0, 3.0, 5.0, 2.0], [8.0, 7.0, 9.0, 7.5]])
    found = cost_at(mious, costs, np.array([[0.45, 0.4], [0.5, 0.1]]))
    assert found == pytest.approx(np.array([[10 - 0.05 / 0.3 * 7, 2.0], [7.0, 7.0]]))
    alone = cost_at(np.array([[0.5]]), np.array([[10.0]]), np.array([[0.5, 0.6]]))
    assert alone == pytest.approx(np.array([[10.0, np.nan]]), nan_ok=True)


def line(*points):
    mious, costs = np.array(points).T
    return Sweep(({},) * len(points), mious[None], {'macs': costs[None]})


def test_saving_by_hand():
    """At -0.5, -1 and -2 pp entropy costs 9.5, 9 and 8, the other 8, 6 and 2."""
    found = saving(line((0.6, 10), (0.58, 2)), line((0.6, 10), (0.5, 0)), 'macs')
    assert [level['loss_pp'] for level in found['levels']] == [0.5, 1, 2]
    for level, miou, theirs, ours in zip(found['levels'], (0.595, 0.59, 0.58), (9.5, 9, 8), (8, 6, 2)):
        assert level == {'loss_pp': level['loss_pp'], 'miou': pytest.approx(miou),
                         'reference_cost': pytest.approx(theirs), 'cost': pytest.approx(ours),
                         'saved': pytest.approx(theirs - ours), 'saved_share': pytest.approx(1 - ours / theirs)}
    assert found['mean'] == {'saved': pytest.approx(3.5),
                             'saved_share': pytest.approx((1.5 / 9.5 + 3 / 9 + 6 / 8) / 3)}
    dearer = saving(line((0.6, 10), (0.5, 0)), line((0.6, 10), (0.58, 2)), 'macs')
    assert dearer['mean']['saved'] == pytest.approx(-3.5)


def test_each_resample_is_compared_at_levels_of_its_own():
    """Image sets that are easier as a whole save the same: both sides and the levels move together."""
    ours, theirs = np.array([[0.6, 0.58]]), np.array([[0.6, 0.5]])
    shift = np.array([[0.0], [0.1], [-0.1]])
    found = saving(*(Sweep(({},) * 2, mious + shift, {'macs': np.array([costs] * 3)})
                     for mious, costs in ((ours, (10.0, 2.0)), (theirs, (10.0, 0.0)))), 'macs')['mean']
    assert found['saved'] == pytest.approx(3.5)
    assert found['intervals']['saved'] == {'90': pytest.approx([3.5, 3.5]), '95': pytest.approx([3.5, 3.5])}


def confusions(count, classes=3, seed=1):
    return np.random.default_rng(seed).integers(0, 50, (count, classes, classes + 1))


def test_mious_of_resamples_are_those_of_their_images():
    matrices = confusions(6)
    matrices[1:, 2] = 0    # one class is in the first image only: without it, it does not count
    weights = resamples(6)
    found = resampled_mious(matrices, weights)
    assert found[0] == pytest.approx(mean_iou(matrices.sum(0)))
    without = 1 + np.flatnonzero(weights[1:, 0] == 0)[0]
    for index in (1, 2, without):
        drawn = np.repeat(np.arange(6), weights[index])
        assert found[index] == pytest.approx(mean_iou(matrices[drawn].sum(0)))


def test_resamples_are_the_same_each_time():
    weights = resamples(7)
    assert weights.shape == (1 + RESAMPLES, 7) and (weights.sum(1) == 7).all() and (weights[0] == 1).all()
    assert (weights == resamples(7)).all() and (weights != resamples(7, seed=1)).any()
    assert len(np.unique(weights[1:], axis=0)) > RESAMPLES // 2
    found = intervals(np.array([9999.0, *range(101)]))
    assert found == {'90': pytest.approx([5, 95]), '95': pytest.approx([2.5, 97.5])}


def swept(costs, seeds, weights, count=8):
    """One setting for each cost and seed; every image has its own costs and confusions, as where pixels stop."""
    outcomes = [Outcome({'name': name}, confusions(count, seed=seed), {'macs': np.arange(count) + cost})
                for name, (cost, seed) in enumerate(zip(costs, seeds))]
    return sweep(outcomes, weights)


def test_a_sweep_sums_up_what_each_image_gave_and_cost():
    weights = resamples(8)
    found = swept((10.0, 0.0), (1, 2), weights)
    assert found.settings == ({'name': 0}, {'name': 1}) and found.mious.shape == (1 + RESAMPLES, 2)
    assert found.costs['macs'][0] == pytest.approx([13.5, 3.5])
    assert found.costs['macs'][5, 1] == pytest.approx(np.repeat(np.arange(8), weights[5]).mean())
    assert found.mious[0, 1] == pytest.approx(mean_iou(confusions(8, seed=2).sum(0)))


def test_intervals_are_of_the_saving_and_hold_its_resamples():
    weights = resamples(8)
    ours, reference = (swept(costs, (1, 2, 3), weights) for costs in ((30.0, 10.0, 5.0), (30.0, 20.0, 15.0)))
    found, again = (saving(ours, reference, 'macs') for _ in range(2))
    assert found == again
    for entry in (*found['levels'], found['mean']):
        for around in entry['intervals'].values():
            assert around['95'][0] <= around['90'][0] <= around['90'][1] <= around['95'][1]
    assert found['mean']['intervals']['saved']['90'][0] < found['mean']['intervals']['saved']['90'][1]
    same = saving(ours, ours, 'macs')['mean']    # the same resamples on both sides: no difference at all
    assert same == {'saved': 0.0, 'saved_share': 0.0, 'intervals': {
        'saved': {'90': [0.0, 0.0], '95': [0.0, 0.0]}, 'saved_share': {'90': [0.0, 0.0], '95': [0.0, 0.0]}}}


def entry(saved, share, fit_share=None):
    spread = {'90': [saved - 2, saved + 2], '95': [saved - 4, saved + 4]}
    shares = {'90': [share - 0.1, share + 0.1], '95': [share - 0.2, share + 0.2]}
    found = {'macs': {'mean': {'saved': saved, 'saved_share': share,
                               'intervals': {'saved': spread, 'saved_share': shares}}}}
    return found if fit_share is None else {**found, 'fit': {'macs': {'mean': {'saved_share': fit_share}}}}


def test_the_best_criterion_is_that_of_the_fitting_images():
    savings = {'region': entry(8.0, 0.4, 0.1), 'confidence': entry(-2.0, -0.1, 0.3), 'gain': entry(9.0, 0.6)}
    assert best_by_fit(savings) == 'confidence'
    claims, around = claims_of(savings, whole_macs=40.0)
    assert claims == {'region_vs_entropy_macs_saved': 8.0, 'region_vs_entropy_saved_share': 0.2,
                      'best_vs_entropy_saved_share': -0.1, 'best_criterion': 'confidence'}
    assert around == {'region_vs_entropy_macs_saved': {'90': [6.0, 10.0], '95': [4.0, 12.0]},
                      'region_vs_entropy_saved_share': {'90': [0.15, 0.25], '95': [0.1, 0.3]},
                      'best_vs_entropy_saved_share': {'90': [-0.2, 0.0], '95': pytest.approx([-0.3, 0.1])}}


def test_what_was_not_measured_is_absent():
    assert claims_of({}, 40.0) == ({}, {})
    assert set(claims_of({'region': entry(8.0, 0.4)}, 40.0)[0]) == {
        'region_vs_entropy_macs_saved', 'region_vs_entropy_saved_share'}
    assert set(claims_of({'gain': entry(8.0, 0.4, 0.2)}, 40.0)[0]) == {'best_vs_entropy_saved_share', 'best_criterion'}


def test_a_curve_that_never_reaches_a_level_saves_nothing_there_and_makes_no_claim():
    found = saving(line((0.592, 10), (0.58, 2)), line((0.6, 10), (0.5, 0)), 'macs')
    first, *others = found['levels']
    assert (first['cost'], first['saved'], first['saved_share']) == (None,) * 3 and first['reference_cost'] is not None
    assert all(level['saved'] is not None for level in others)
    assert found['mean'] == {'saved': None, 'saved_share': None}
    of = {'macs': found, 'fit': {'macs': {'mean': {'saved_share': 0.2}}}}
    assert claims_of({'region': of, 'gain': {**of, 'fit': {'macs': found}}}, 40.0) == ({'best_criterion': 'region'}, {})
