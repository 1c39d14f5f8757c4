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
"""What an exit criterion costs at equal mIoU, and what it saves against another: pure arithmetic, with intervals.

A criterion is swept over its settings. At each of them it has an `Outcome`: of every image a confusion matrix and what
it cost. So it does not matter here whether whole frames stop or single pixels. Intervals come from a bootstrap over the
images (Efron, Annals of Statistics 1979): everything is worked out anew for each resample, levels of mIoU included.

In all arrays the first axis is that of the resamples, of which the first is no resample but the images as they are.
"""
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

REFERENCE = 'entropy'                 # the criterion that others are compared with
LOSSES_PP = (0.5, 1.0, 2.0)           # levels at which costs are compared: so far below the mIoU of the final output
RESAMPLES, SURE = 400, (0.9, 0.95)


@dataclass(frozen=True)
class Outcome:
    """What a criterion at one of its settings gave on n labelled images.

    setting: what tells it from the others, for its row in the report. matrices: int64 (n, classes, classes + 1), see
    `metrics.confusion`, of the mask that each image ends with. costs: name (`macs`, multiply-accumulates; `ms`) ->
    float64 (n,), all that ran for the image.
    """

    setting: dict
    matrices: np.ndarray
    costs: dict


@dataclass(frozen=True)
class Sweep:
    """A criterion at P settings, the first of which runs the final output on every frame, in the order of its curve.

    settings: tuple of P dicts. mious: float64 (R, P), 0..1. costs: name -> float64 (R, P), means per image.
    """

    settings: tuple
    mious: np.ndarray
    costs: dict


def resamples(count: int, seed: int = 0) -> np.ndarray:
    """int64 (1 + RESAMPLES, count): how often each resample has each image; before them the images, once each."""
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, RESAMPLES)
    return np.concatenate([np.ones((1, count), np.int64), drawn])


def resampled_mious(matrices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 (R,): `metrics.mean_iou` of each resample; matrices (n, classes, classes + 1), weights (R, n)."""
    square = matrices[..., :-1]
    hits, given, labelled = (weights @ part.astype(np.float64) for part in (
        np.diagonal(square, axis1=1, axis2=2), square.sum(1), matrices.sum(2)))
    union = labelled + given - hits
    with np.errstate(invalid='ignore'):    # NaN for a resample in which nothing is labelled
        return np.where(labelled > 0, hits / np.maximum(union, 1), 0).sum(1) / (labelled > 0).sum(1)


def sweep(outcomes: Iterable[Outcome], weights: np.ndarray) -> Sweep:
    """The outcomes of one criterion, at least one, summed up; weights as of `resamples`. Matrices are not kept."""
    settings, mious, costs = [], [], []
    for outcome in outcomes:
        settings.append(outcome.setting)
        mious.append(resampled_mious(outcome.matrices, weights))
        costs.append({name: weights @ values / weights.sum(1) for name, values in outcome.costs.items()})
    return Sweep(tuple(settings), np.stack(mious, 1),
                 {name: np.stack([entry[name] for entry in costs], 1) for name in costs[0]})


def cost_at(mious: np.ndarray, costs: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """float64 (R, L): the least mean cost at which a curve reaches each wanted mIoU; NaN where it never does.

    mious, costs: (R, P), neighbours side by side. wanted: (R, L). Frames can be split between two neighbouring
    settings, so what lies on the line between them can be had, too.
    """
    mious, costs, wanted = mious[:, None], costs[:, None], wanted[..., None]
    reached = mious >= wanted
    least = np.where(reached, costs, np.inf).min(-1)
    crosses = reached[..., 1:] != reached[..., :-1]
    rise = np.where(crosses, np.diff(mious), 1.0)
    between = costs[..., :-1] + (wanted - mious[..., :-1]) / rise * np.diff(costs)
    least = np.minimum(least, np.where(crosses, between, np.inf).min(-1, initial=np.inf))
    return np.where(np.isfinite(least), least, np.nan)


def intervals(values: np.ndarray) -> dict:
    """{'90': [low, high], '95': ...}: where the middle 90 and 95 % of the resamples lie (percentile intervals).

    values: float64 (R,), the first of which is no resample.
    """
    return {f'{100 * sure:g}': [float(end) for end in np.nanquantile(values[1:], ((1 - sure) / 2, (1 + sure) / 2))]
            for sure in SURE}


def _number(value):
    return float(value) if np.isfinite(value) else None


def _saved(theirs, ours):
    """`saved` and `saved_share` of costs (R, L), means over L, with intervals where there are resamples.

    None, without intervals, where one of the two never reaches a level.
    """
    values = {'saved': (theirs - ours).mean(1), 'saved_share': ((theirs - ours) / theirs).mean(1)}
    found = {key: _number(value[0]) for key, value in values.items()}
    if len(theirs) > 1 and None not in found.values():
        found['intervals'] = {key: intervals(value) for key, value in values.items()}
    return found


def saving(ours: Sweep, reference: Sweep, cost: str) -> dict:
    """What a criterion saves against the reference at equal mIoU, in one kind of cost.

    Returns {levels: one for each of LOSSES_PP {loss_pp, miou, reference_cost, cost, saved, saved_share}, mean: {saved,
    saved_share}: their means over the levels}, with `intervals` of `saved` and `saved_share` where the sweeps have
    resamples. saved: in the unit of the cost; saved_share: over the reference's cost. Negative: it costs more. None
    where a curve never reaches a level.
    """
    levels = reference.mious[:, :1] - np.array(LOSSES_PP) / 100
    theirs, mine = (cost_at(side.mious, side.costs[cost], levels) for side in (reference, ours))
    return {'levels': [{'loss_pp': loss, 'miou': float(levels[0, index]), 'reference_cost': _number(theirs[0, index]),
                        'cost': _number(mine[0, index]), **_saved(theirs[:, [index]], mine[:, [index]])}
                       for index, loss in enumerate(LOSSES_PP)],
            'mean': _saved(theirs, mine)}


def best_by_fit(savings: dict) -> str | None:
    """Name of the criterion that saves the largest share of multiply-accumulates on the fitting images, or None.

    savings: criterion -> {fit: {macs: see `saving`}, ...}, without `fit` where a bundle stores no such figures. Never
    decided on the images that are reported on: the best of several on them would flatter itself.
    """
    shares = {name: entry['fit']['macs']['mean']['saved_share'] for name, entry in savings.items() if 'fit' in entry}
    shares = {name: share for name, share in shares.items() if share is not None}
    return max(shares, key=shares.get) if shares else None


def claims_of(savings: dict, whole_macs: float) -> tuple:
    """(claims, intervals) of `criteria.json`: flat maps by the same names; absent is what was not measured.

    savings: criterion -> {macs, ms, fit}, see `saving`. whole_macs: multiply-accumulates of the whole network with all
    heads, over which `region_vs_entropy_saved_share` is taken, while that of the best is over entropy's cost.
    """
    claims, around = {}, {}
    if 'region' in savings and savings['region']['macs']['mean']['saved'] is not None:
        mean = savings['region']['macs']['mean']
        for claim, unit in (('region_vs_entropy_macs_saved', 1.0), ('region_vs_entropy_saved_share', whole_macs)):
            claims[claim] = mean['saved'] / unit
            around[claim] = {sure: [end / unit for end in ends] for sure, ends in mean['intervals']['saved'].items()}
    best = best_by_fit(savings)
    if best is not None:
        claims['best_criterion'], mean = best, savings[best]['macs']['mean']
        if mean['saved_share'] is not None:
            claims['best_vs_entropy_saved_share'] = mean['saved_share']
            around['best_vs_entropy_saved_share'] = mean['intervals']['saved_share']
    return claims, around
