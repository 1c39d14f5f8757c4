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
"""Cascades worked out from stored observations give what the evaluation of a running bundle gives."""
import numpy as np
import pytest
from tiny import CLASSES, HEIGHT, WIDTH, tiny_bundle

from ee_seg_ros.evaluation.evaluate import cascade, observe, static_costs
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.search.cascades import Costs, Counts, costs_of, nested, pareto, prune, run_cascade, threshold_levels
from ee_seg_ros.search.observations import PAIRED, SINGLE, observe_candidates


@pytest.mark.parametrize('split', ['stage2', None])
@pytest.mark.parametrize('criterion', [*SINGLE, *PAIRED])
def test_a_cascade_gives_what_the_running_bundle_gives(tmp_path, split, criterion):
    """Observed with all five exits, worked out for three of them; compared with a bundle that has only these."""
    rng = np.random.default_rng(1)
    samples = [(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), rng.integers(0, CLASSES, (HEIGHT, WIDTH), np.uint8))
               for _ in range(6)]
    whole = Bundle.load(tiny_bundle(tmp_path / 'all', split=split))
    chosen = Bundle.load(tiny_bundle(tmp_path / 'chosen', split=split, exits=('exit1', 'exit2', 'exit4', 'final')))
    observed = observe_candidates(Engine(whole, threads=1), samples)
    costs = {'macs': costs_of(whole, {name: graph['macs'] for name, graph in whole.graphs.items()}, {})}
    np.testing.assert_array_equal(costs['macs'].alone, static_costs(whole))
    trial = run_cascade(observed, Counts(observed), costs, (0, 1, 3, 4), criterion, split is not None)
    direct = observe(Engine(chosen, threads=1), samples)
    assert len(trial.miou) > 5 and (trial.shares[:, :-1] > 0).any()
    # The graphs of the smaller bundle have other multiply-accumulates: costs are compared by what stopping costs.
    path = costs['macs'].path((0, 1, 3, 4))
    for row in range(0, len(trial.miou), 3):
        expected = cascade(chosen, direct, criterion, trial.thresholds[row])
        shares = [*expected['exit_shares'][:-1], *expected['offboard_exit_shares']]
        if split is None:
            shares = expected['exit_shares'][:4]
        assert trial.miou[row] == pytest.approx(expected['miou'], abs=1e-12)
        np.testing.assert_allclose(trial.shares[row], shares)
        assert trial.costs['macs'][row] == pytest.approx(np.dot(shares, path))
        assert (trial.costs['bytes'][row] > 0) == (expected['forwarded_share'] > 0 and split is not None)


def test_costs_of_a_path_count_all_heads_and_each_judging():
    costs = Costs(np.array([10.0, 20.0, 40.0]), np.array([1.0, 2.0, 4.0]), {'entropy': 0.5})
    np.testing.assert_array_equal(costs.path((0, 2), 'entropy'), [11.5, 45.5])    # the last exit is not judged
    np.testing.assert_array_equal(costs.path((0, 1, 2)), [11, 23, 47])


def test_pareto_front_of_points():
    costs, gains = np.array([3.0, 1.0, 2.0, 2.0, 4.0, 1.0]), np.array([0.7, 0.5, 0.6, 0.7, 0.9, 0.4])
    assert pareto(costs, gains).tolist() == [1, 3, 4]
    assert pareto(np.array([]), np.array([])).tolist() == []


def test_pruning_keeps_the_front_of_each_place(known):
    observed, costs = known
    assert prune(observed, costs['macs'], 4) == [0, 2, 3]    # c1 is dearer than c0 and no better
    assert prune(observed, costs['macs'], 1) == [0, 2, 3]


def test_choices_are_in_order_of_depth_with_one_exit_a_place(known):
    assert list(nested(known[0], [0, 1, 2], 1, 2)) == [(0,), (1,), (2,), (0, 2), (1, 2)]


def test_exits_share_thresholds_in_groups():
    """The exits before the last onboard one, that one, those behind the split."""
    scores = np.array([[1, 2, 10, 20, 30], [3, 4, 11, 21, 31]], float)
    levels = threshold_levels(CRITERIA['entropy'], scores, 3, (3, 2, 2))
    assert len(levels) == 3 * 2 * 2
    np.testing.assert_array_equal(levels[:, 0], levels[:, 1])
    np.testing.assert_array_equal(levels[:, 3], levels[:, 4])
    assert np.unique(levels[:, 0]) == pytest.approx([1, 2.5, 4]) and (levels[-1] > scores).all()
    assert np.unique(levels[:, 2]) == pytest.approx([10, 11]) and np.unique(levels[:, 3]) == pytest.approx([20, 31])
    first, last = levels[0], levels[-1]
    assert (first <= last).all()    # from those that settle least


def test_an_exit_without_scores_needs_no_threshold():
    scores = np.array([[np.nan, 1.0, np.nan], [np.nan, 2.0, np.nan]])
    levels = threshold_levels(CRITERIA['region'], scores, 2, (3, 9, 9))
    np.testing.assert_allclose(levels, [[0, 1, 0], [0, 1.5, 0], [0, 2, 0]], atol=2e-6)
    above = threshold_levels(CRITERIA['confidence'], scores[:, 1:2], 1, (3, 9, 9))
    np.testing.assert_allclose(above[:, 0], [2, 1.5, 1], atol=2e-6)
    assert above[0] > 2 and above[-1] <= 1    # from none to all
    assert threshold_levels(CRITERIA['region'], scores[:, :1], 1).tolist() == [[0]]
