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
"""The search finds what is best by hand and by brute force, and says clearly what cannot be had."""
from itertools import combinations

import numpy as np
import pytest

from ee_seg_ros.evaluation.metrics import mean_iou
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.search.cascades import threshold_levels
from ee_seg_ros.search.find import LEVELS, Goal, SearchError, cross_check, find


def test_finds_the_cascade_that_is_best_by_hand(known):
    """Easy images stop at c0, hard ones go on to c3: (12 + 12 + 90 + 90) / 4, and every mask is right."""
    found = find({13: known}, Goal(limits={'macs': 51}))
    chosen = found.chosen
    assert (chosen['exits'], chosen['macs'], chosen['miou'], chosen['split']) == (['c0', 'c3'], 51, 1.0, 13)
    assert chosen['exit_shares'] == [0.5, 0.5] and chosen['bytes'] == 500


def test_least_cost_for_a_miou(known):
    chosen = find({13: known}, Goal(miou=0.99)).chosen
    assert chosen['exits'] == ['c0', 'c3'] and chosen['macs'] == 51


def test_the_criterion_asked_for_is_kept_and_its_judging_counted(known):
    chosen = find({13: known}, Goal(cost='ms', miou=0.99, criteria=('entropy',))).chosen
    assert chosen['criterion'] == 'entropy' and chosen['ms'] == pytest.approx(5.1 + 0.5)


def test_limits_of_other_costs_hold_on_the_whole_front(known):
    front = find({13: known}, Goal(miou=0.1, limits={'bytes': 250})).front
    assert max(entry['bytes'] for entry in front) <= 250 and front[-1]['miou'] < 1


def test_bytes_as_the_cost(known):
    found = find({13: known}, Goal(cost='bytes', limits={'bytes': 600}))
    assert found.chosen['miou'] == 1.0 and found.chosen['bytes'] == 500
    assert found.front[0]['bytes'] == 0


def test_a_split_that_sends_less_is_chosen_where_bytes_count(two_splits):
    """Behind unit 8 the features are 300 bytes instead of 1000, and the final exit is right in 0.9 of the hard images.

    With 200 bytes per image the robot forwards both hard images only from there: (1 + 1 + 0.9 + 0.9) / 4 are right.
    """
    found = find(two_splits, Goal(cost='bytes', limits={'bytes': 200}))
    assert (found.chosen['split'], found.chosen['exits'], found.chosen['bytes']) == (8, ['c0', 'c3'], 150)
    observed, _ = two_splits[8]
    assert found.chosen['exit_mious'] == observed.mious[[0, 2]].tolist()
    richer = find(two_splits, Goal(cost='bytes', limits={'bytes': 600})).chosen
    assert (richer['split'], richer['miou'], richer['bytes']) == (13, 1.0, 500)
    nothing_sent = found.front[0]
    assert (nothing_sent['split'], nothing_sent['bytes']) == (None, 0)


def test_splits_can_be_given(two_splits):
    poor = find(two_splits, Goal(cost='bytes', limits={'bytes': 200}, splits=(13,))).chosen
    assert poor['split'] is None and poor['bytes'] == 0
    assert {entry['split'] for entry in find(two_splits, Goal(miou=0.1, splits=(8,))).front} <= {8, None}
    with pytest.raises(ValueError, match='no split behind unit 9: choose among 13, 8'):
        find(two_splits, Goal(miou=0.1, splits=(9,)))


def test_what_forwards_nothing_is_tried_once(two_splits, known):
    everything, main = find(two_splits, Goal(miou=0.1)).tried, find({13: known}, Goal(miou=0.1)).tried
    only_8 = find(two_splits, Goal(miou=0.1, splits=(8,))).tried
    onboard = find({13: known}, Goal(miou=0.1, last='c2')).tried
    assert everything == main + only_8 - onboard
    alone = find({13: known}, Goal(miou=0.1, split=False)).tried
    assert find(two_splits, Goal(miou=0.1, split=False)).tried == alone


def test_an_exit_that_a_split_leaves_out_is_no_last_one_there(two_splits):
    front = find(two_splits, Goal(miou=0.1, last='c2')).front
    assert {(entry['exits'][-1], entry['split']) for entry in front} == {('c2', None)}


def test_the_last_exit_can_be_given(known):
    front = find({13: known}, Goal(miou=0.1, last='c2')).front
    assert {entry['exits'][-1] for entry in front} == {'c2'}
    assert find({13: known}, Goal(limits={'macs': 51}, last='c3')).chosen['exits'] == ['c0', 'c3']
    with pytest.raises(ValueError, match="'c9'.*c0, c1, c2, c3"):
        find({13: known}, Goal(miou=0.1, last='c9'))


def test_on_one_computer_nothing_is_sent(known):
    chosen = find({13: known}, Goal(miou=0.99, split=False)).chosen
    assert chosen['bytes'] == 0 and not chosen['split'] and chosen['macs'] == 51


def test_budgeted_is_one_exit(known):
    chosen = find({13: known}, Goal('budgeted', limits={'macs': 40})).chosen
    assert chosen['exits'] == ['c0']    # c2 is dearer, not better
    chosen = find({13: known}, Goal('budgeted', miou=0.9)).chosen
    assert chosen['exits'] == ['c3'] and chosen['macs'] == 88 and chosen['thresholds'] == []


def test_anytime_counts_from_when_each_mask_is_there(known):
    """Within 100: nothing until 12, the mask of c0 until 90, then that of c3."""
    observed, _ = known
    chosen = find({13: known}, Goal('anytime', limits={'macs': 100}, exits=2)).chosen
    assert chosen['exits'] == ['c0', 'c3'] and chosen['macs'] == 90
    assert chosen['miou'] == pytest.approx((78 * observed.mious[0] + 10 * 1.0) / 100)


@pytest.mark.parametrize('split', [True, False])
@pytest.mark.parametrize('criterion', ['entropy', 'confidence', 'region', 'region_change'])
def test_brute_force_over_everything_finds_nothing_better(drawn, criterion, split):
    observed, costs = drawn
    everything = list(_brute_force(observed, costs['macs'], criterion, split))
    for limit in (30, 40, 45):
        best = max(miou for cost, miou in everything if cost <= limit)
        chosen = find({13: drawn}, Goal(limits={'macs': limit}, exits=3, criteria=(criterion,), split=split)).chosen
        assert chosen['miou'] == pytest.approx(best, abs=1e-12) and chosen['macs'] <= limit


def _brute_force(observed, costs, criterion, split):
    """(cost, mIoU) of all cascades of up to three exits, image by image; all candidates, none left out."""
    rule = CRITERIA[criterion]
    for count in (2, 3):
        for exits in combinations(range(len(observed.names)), count):
            if len(set(observed.places[list(exits)])) < count or (split and not observed.onboard[exits[0]]):
                continue
            scores = np.stack([observed.score(criterion, exits[j - 1] if j else None, exits[j])
                               for j in range(count - 1)], 1)
            onboard = sum(observed.onboard[list(exits[:-1])]) if split else count - 1
            for thresholds in threshold_levels(rule, scores, onboard, LEVELS):
                total, cost = 0, 0.0
                for image, row in enumerate(scores):
                    end = next((j for j in range(count - 1) if rule.settles(row[j], thresholds[j])), count - 1)
                    total = total + observed.matrices[image, exits[end]]
                    cost += costs.reach[exits[end]] + sum(costs.heads[index] for index in exits[:end + 1])
                yield cost / len(scores), mean_iou(total)


def test_the_front_rises_in_cost_and_miou(drawn):
    front = find({13: drawn}, Goal(limits={'ms': 5}, cost='ms')).front
    for cheap, dear in zip(front, front[1:]):
        assert cheap['ms'] < dear['ms'] and cheap['miou'] < dear['miou']


@pytest.mark.parametrize('goal, said', [
    (Goal(limits={'macs': 5}), 'at most 5e-09 GMAC: the cheapest costs 1.2e-08 GMAC'),
    (Goal('budgeted', limits={'macs': 5}), 'the best has an mIoU of 1.0000 at 8.8e-08 GMAC'),
    (Goal(miou=0.99, limits={'bytes': 100}), 'an mIoU of at least 0.99: the cheapest'),
    (Goal(miou=0.99, limits={'ms': 0.1}), 'nothing keeps the other limits')])
def test_what_cannot_be_had_is_said_with_what_can(known, goal, said):
    with pytest.raises(SearchError, match=said):
        find({13: known}, goal)


@pytest.mark.parametrize('wrong, what', [
    ({'mode': 'best'}, 'mode'), ({'cost': 'watts'}, 'cost'), ({}, 'how much macs'),
    ({'limits': {'macs': -1}}, 'positive'), ({'miou': 68}, 'between 0 and 1'),
    ({'limits': {'watts': 1}, 'miou': 0.5}, 'limit'), ({'miou': 0.5, 'exits': 1}, 'at least 2'),
    ({'criteria': ('always',), 'miou': 0.5}, 'criterion'),
    ({'mode': 'budgeted', 'cost': 'bytes', 'miou': 0.5}, 'only sent'),
    ({'split': False, 'splits': (8,), 'miou': 0.5}, 'none elsewhere'), ({'splits': (), 'miou': 0.5}, 'at least one')])
def test_goals_that_make_no_sense(wrong, what):
    with pytest.raises(ValueError, match=what):
        Goal(**wrong)


def test_a_static_network_has_one_exit(known):
    assert len(find({13: known}, Goal('budgeted', limits={'macs': 60}, exits=1)).chosen['exits']) == 1


def test_cross_check_measures_on_images_that_were_not_chosen_on(known):
    """On the easy half c0 alone keeps everything right; on the hard half that loses, so promises are not kept."""
    found = cross_check({13: known}, Goal(limits={'macs': 60}, criteria=('entropy',), exits=2))
    assert found['promised_miou'] > found['kept_miou'] + 0.1
    assert cross_check({13: known}, Goal('anytime', limits={'macs': 100})) is None


def test_cross_check_measures_with_the_split_that_was_chosen(two_splits):
    """Each half has one easy and one hard image: what one promises the other keeps, 0.9 on its hard image."""
    shuffled = {unit: (observed.subset(np.array([0, 2, 1, 3])), costs)
                for unit, (observed, costs) in two_splits.items()}
    found = cross_check(shuffled, Goal(cost='bytes', limits={'bytes': 300}, splits=(8,), criteria=('confidence',)))
    assert 0 < found['kept_bytes'] <= 300 and found['kept_miou'] > 0.85
