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
"""Candidates whose best choice is known by hand, and random ones for brute force."""
from dataclasses import replace

import numpy as np
import pytest

from ee_seg_ros.search.cascades import Costs
from ee_seg_ros.search.observations import Candidates

PIXELS = 100    # of each class, per image


def candidates(right, places, onboard, scores, grids=None, payload=1000):
    """Two classes, 100 pixels each; right: (n, k) share of them that an exit gets right."""
    right = np.asarray(right, float)
    hits = np.rint(PIXELS * right).astype(np.int64)
    matrices = np.zeros((*right.shape, 2, 3), np.int64)
    matrices[..., 0, 0] = matrices[..., 1, 1] = hits
    matrices[..., 0, 1] = matrices[..., 1, 0] = PIXELS - hits
    grids = np.zeros((*right.shape, 2, 2), np.uint8) if grids is None else grids
    scores = np.asarray(scores, float)
    return Candidates(np.array([f'c{index}' for index in range(right.shape[1])]), np.array(places), np.array(onboard),
                      matrices, grids, {'entropy': scores, 'confidence': 1 - scores}, np.full(len(right), payload))


@pytest.fixture
def known():
    """Four images, two of them hard, and four candidates.

    c0 and c1 sit behind the first unit: equally good, c1's head costs more. c2 is onboard, too, sure of itself without
    being better. c3 lies behind the split, and is always right. Only c0 and c1 know which images are hard.
    """
    right = [[1.0, 1.0, 1.0, 1.0]] * 2 + [[0.6, 0.6, 0.6, 1.0]] * 2
    entropy = [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.5, 0.5], [0.8, 0.8, 0.5, 0.5], [0.9, 0.9, 0.5, 0.5]]
    found = candidates(right, [0, 0, 1, 2], [True, True, True, False], entropy)
    reach, heads = np.array([10.0, 10.0, 30.0, 80.0]), np.array([2.0, 9.0, 2.0, 8.0])
    return found, {'macs': Costs(reach, heads, {}), 'ms': Costs(reach / 10, heads / 10, {'entropy': 0.5})}


@pytest.fixture
def two_splits(known):
    """The four images of `known`, split behind unit 13 as there, or behind unit 8 for fewer bytes.

    There c2 takes finer features that it would not find, and c3 gets 0.9 of a hard image right.
    """
    observed, costs = known
    right = [[1.0, 1.0, 1.0]] * 2 + [[0.6, 0.6, 0.9]] * 2
    early = candidates(right, [0, 0, 1], [True, True, False], np.delete(observed.single['entropy'], 2, 1), payload=300)
    left = replace(early, names=np.delete(observed.names, 2))
    fewer = {name: Costs(np.delete(cost.reach, 2), np.delete(cost.heads, 2), cost.judging)
             for name, cost in costs.items()}
    return {13: known, 8: (left, fewer)}


@pytest.fixture
def drawn():
    """Twelve random images and seven candidates at four places, two of them onboard; deeper ones are better."""
    rng = np.random.default_rng(0)
    places = np.array([0, 0, 1, 1, 2, 2, 3])
    right = np.clip(0.5 + 0.12 * places + rng.normal(0, 0.15, (12, 7)), 0, 1)
    grids = rng.integers(0, 2, (12, 7, 3, 3)).astype(np.uint8)
    found = candidates(right, places, places < 2, 1 - right + rng.normal(0, 0.1, right.shape), grids)
    reach, heads = 10.0 + 10 * places, rng.uniform(1, 5, 7)
    return found, {'macs': Costs(reach, heads, {}), 'ms': Costs(reach / 7, heads / 5, {'entropy': 0.1, 'region': 0.2})}
