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
"""What a choice of exits, a criterion and thresholds would give, worked out from stored observations."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA, Criterion
from ee_seg_ros.search.observations import Candidates

# How many thresholds are tried for each group of exits that share one, see `threshold_levels`.
LEVELS = (33, 9, 5)
SHARED_LEVELS = 200    # where all exits share one


@dataclass(frozen=True)
class Costs:
    """One kind of cost (multiply-accumulates, or milliseconds) of k exits.

    reach (k,): of the stages before an exit, behind the split with encoder and decoder. heads (k,): of its head.
    judging: criterion -> of looking at one exit.
    """

    reach: np.ndarray
    heads: np.ndarray
    judging: dict

    @property
    def alone(self) -> np.ndarray:
        """Each exit as a network of its own."""
        return self.reach + self.heads

    def path(self, exits: Sequence[int], criterion: str | None = None) -> np.ndarray:
        """Of stopping at each of `exits`, run in this order: all heads passed, and their judging, are counted."""
        index = list(exits)
        judged = np.arange(1, len(index) + 1)
        judged[-1] -= 1    # the last is taken as it is
        return self.reach[index] + np.cumsum(self.heads[index]) + judged * self.judging.get(criterion, 0.0)


def costs_of(bundle: Bundle, per_graph: dict, judging: dict) -> Costs:
    """Costs of a bundle's exits. per_graph: graph name -> cost. judging: as in `Costs`."""
    heads = np.array([per_graph[exit_.graph] for exit_ in bundle.exits])
    alone = np.array([sum(per_graph[graph] for graph in bundle.path_to(exit_.name)) for exit_ in bundle.exits])
    return Costs(alone - heads, heads, judging)


def pareto(costs: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Indices of the points that no other beats (cheaper and no worse, or better and no dearer), from cheap to dear."""
    order = np.lexsort((-gains, costs))
    best = np.maximum.accumulate(gains[order])
    return order[np.append(True, best[1:] > best[:-1])] if len(order) else order


def prune(candidates: Candidates, costs: Costs, per_place: int) -> list:
    """Indices of the candidates worth trying: of each place its Pareto front of mIoU against the cost of the head.

    Of a longer front `per_place` of them, evenly spread, its ends among them.
    """
    kept = []
    for place in np.unique(candidates.places):
        here = np.flatnonzero(candidates.places == place)
        front = here[pareto(costs.heads[here], candidates.mious[here])]
        spread = np.linspace(0, len(front) - 1, min(per_place, len(front))).round().astype(int)
        kept += front[spread].tolist()
    return kept


def nested(candidates: Candidates, kept: Sequence[int], fewest: int, most: int) -> Iterator[tuple]:
    """Every choice of `fewest` to `most` exits among `kept`, in order of depth, at most one behind each unit."""
    by_place = [[index for index in kept if candidates.places[index] == place]
                for place in np.unique(candidates.places[np.array(kept, int)])]
    for count in range(fewest, most + 1):
        for places in combinations(by_place, count):
            yield from product(*places)


def threshold_levels(rule: Criterion, scores: np.ndarray, onboard: int, levels: Sequence[int] = LEVELS) -> np.ndarray:
    """float64 (L, judged exits): thresholds to try, those that settle least first.

    scores: float (n, judged exits), the first `onboard` of them before the split; NaN: no score. Exits share thresholds
    in up to three groups, for a few dozen images cannot tell more apart from chance: the last onboard exit, which
    decides about the dearest step; those before it; those behind the split. Of each group's scores quantiles are tried,
    levels[0] in the first group that has scores, levels[1] in the second, levels[2] in the third; the outermost lie
    just beyond all scores, so that no image or every image settles. Where a criterion's scores mean the same at every
    exit (`Criterion.shared`), all exits share one threshold, of which `SHARED_LEVELS` are tried.
    """
    groups = [np.arange(0, max(0, onboard - 1)), np.arange(max(0, onboard - 1), onboard),
              np.arange(onboard, scores.shape[1])]
    if rule.shared:
        groups, levels = [np.arange(scores.shape[1])], (SHARED_LEVELS,)
    tried, shared = [], []
    for group in groups:
        known = scores[:, group][np.isfinite(scores[:, group])]
        if len(known):
            found = np.quantile(known, np.linspace(0, 1, levels[len(tried)])).round(6)
            found[0], found[-1] = np.floor(1e6 * known.min()) / 1e6, np.floor(1e6 * known.max() + 1) / 1e6
            found = np.unique(found)
            tried.append(found if rule.direction == 'below' else found[::-1])
            shared.append(group)
    chosen = np.zeros((int(np.prod([len(values) for values in tried])), scores.shape[1]))
    for group, values in zip(shared, np.meshgrid(*tried, indexing='ij')):
        chosen[:, group] = values.reshape(-1, 1)
    return chosen


@dataclass(frozen=True)
class Trial:
    """A choice of exits with a criterion at L settings of its thresholds.

    exits: indices of candidates. thresholds (L, judged); miou (L,) 0..1; costs: name -> (L,), means per image;
    shares (L, exits): of the images that end at each exit.
    """

    exits: tuple
    criterion: str
    thresholds: np.ndarray
    miou: np.ndarray
    costs: dict
    shares: np.ndarray


class Counts:
    """What mIoU needs of the confusion matrices, summed quickly for many choices at once."""

    def __init__(self, candidates: Candidates):
        square = candidates.matrices[..., :-1]
        classes = square.shape[-1]
        hits, given = np.diagonal(square, axis1=-2, axis2=-1), square.sum(-2)
        self._classes = classes
        self._counts = np.concatenate([hits, given], axis=-1).astype(np.float64)    # (n, k, 2 C)
        self._labelled = candidates.matrices[:, 0].sum((0, 2))                      # whatever the exit

    def mious(self, exits: Sequence[int], ends: np.ndarray) -> np.ndarray:
        """float64 (L,): mIoU where image i ends at exits[ends[l, i]]; ends int (L, n)."""
        chosen = (ends[:, :, None] == np.arange(len(exits))).astype(np.float64)
        counts = self._counts[:, list(exits)].reshape(-1, 2 * self._classes)
        hits, given = np.split(chosen.reshape(len(ends), -1) @ counts, 2, axis=1)
        known = self._labelled > 0
        union = self._labelled[known] + given[:, known] - hits[:, known]
        return (hits[:, known] / union).mean(1)


def run_cascade(candidates: Candidates, counts: Counts, costs: dict, exits: tuple, criterion: str, split: bool,
                thresholds: np.ndarray | None = None, levels: Sequence[int] = LEVELS) -> Trial:
    """What a criterion gives on a choice of exits, over an ideal link, for each row of `thresholds`.

    costs: name -> `Costs`. split: whether exits behind the split run offboard; else everything runs on one computer.
    thresholds: float (L, judged); None: those of `threshold_levels` with `levels`.
    """
    sides = candidates.onboard[list(exits)] if split else np.ones(len(exits), bool)
    scores = np.stack([candidates.score(criterion, *pair) for pair in zip([None, *exits], exits[:-1])], 1)
    rule = CRITERIA[criterion]
    if thresholds is None:
        thresholds = threshold_levels(rule, scores, int(sides[:-1].sum()), levels)
    settled = rule.settles(scores[None], thresholds[:, None])
    ends = np.where(settled.any(2), settled.argmax(2), len(exits) - 1)
    means = {name: cost.path(exits, criterion)[ends].mean(1) for name, cost in costs.items()}
    means['bytes'] = (~sides[ends] * candidates.payloads).mean(1)
    shares = (ends[:, :, None] == np.arange(len(exits))).mean(1)
    return Trial(exits, criterion, thresholds, counts.mious(exits, ends), means, shares)


def run_alone(candidates: Candidates, costs: dict, index: int) -> Trial:
    """One exit for all images, as a network of its own on one computer."""
    means = {name: cost.alone[[index]] for name, cost in costs.items()} | {'bytes': np.zeros(1)}
    return Trial((index,), 'never', np.zeros((1, 0)), candidates.mious[[index]], means, np.ones((1, 1)))


def run_anytime(candidates: Candidates, costs: dict, exits: tuple, cost: str, horizon: float) -> Trial:
    """All exits in turn on one computer, each of which puts out its mask, until the run is cut off.

    `miou` is what there is in the mean at a moment drawn evenly from 0..horizon (in units of `cost`): nothing (0)
    before the first exit, the mIoU of the last exit that is done after that. A mean over the exits themselves would be
    best with all of them at the end of the network.
    """
    done = np.minimum(costs[cost].path(exits), horizon)
    value = candidates.mious[list(exits)] @ np.diff(done, append=horizon) / horizon
    means = {name: kind.path(exits)[-1:] for name, kind in costs.items()} | {'bytes': np.zeros(1)}
    return Trial(exits, 'never', np.zeros((1, len(exits) - 1)), np.array([value]), means,
                 np.eye(len(exits))[-1:])
