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
"""The part of `ee_seg bench criteria` about single pixels: what stopping them saves, and forwarding only some cells.

Here no frame stops as a whole: each runs to the end, on whatever of it has not stopped.
"""
import time
from collections.abc import Callable, Iterable, Sequence
from random import Random
from statistics import mean, median

import numpy as np

from ee_seg_ros.evaluation.evaluate import to_the_end
from ee_seg_ros.evaluation.metrics import confusion
from ee_seg_ros.evaluation.savings import Outcome, Sweep, cost_at, intervals, sweep
from ee_seg_ros.evaluation.timing import median_times, size_of
from ee_seg_ros.inference.engine import Engine, Result
from ee_seg_ros.inference.outputs import GRID

WHOLE, CELLS, CBT, PAPER = 'all pixels, all cells', 'all pixels, unsettled cells', 'class_threshold', 'CBT 0.99..0.998'
UNIFORM = {f'uniform {limit:g}': limit for limit in (0.998, 0.99, 0.95, 0.9, 0.8, 0.7)}
ADP_C = 'uniform 0.998'    # the paper's
QUARTER, SHARES = 0.25, 10    # of the tiles; bins of the histogram


def settings_of(engine: Engine) -> dict:
    """Name -> (criterion, limits, whether only unsettled cells are forwarded) of all that is compared."""
    bundle = engine.bundle
    found = {WHOLE: ('never', None, False), CELLS: ('never', None, True), CBT: (CBT, None, True)}
    paper = bundle.document['pixels'].get('paper_limits')
    if paper is not None:
        found[PAPER] = (CBT, paper, True)
    return found | {name: ('uniform', [limit] * len(bundle.classes), True) for name, limit in UNIFORM.items()}


def outcomes(engine: Engine, samples: Iterable, report: Callable[[], None] = lambda: None) -> tuple:
    """({name: Outcome}, active shares): all of `settings_of` on every (image, labels), each time in another order.

    Costs are `macs`, `ms` (image to final mask) and `bytes`, sent. active shares: float64 (n,), of the tiles on which
    `class_threshold` runs the second stage.
    """
    settings, random, active = settings_of(engine), Random(0), []
    found = {name: ([], {'macs': [], 'ms': [], 'bytes': []}) for name in settings}
    order, classes = list(settings), len(engine.bundle.classes)
    for image, labels in samples:
        if not active:    # the first run of a graph allocates
            for criterion, limits, partial in settings.values():
                to_the_end(engine, image, criterion, partial, limits)
        random.shuffle(order)
        for name in order:
            criterion, limits, partial = settings[name]
            began = time.perf_counter()
            frame = to_the_end(engine, image, criterion, partial, limits)
            mask = frame.mask(*size_of(image))
            passed = (time.perf_counter() - began) * 1e3
            matrices, costs = found[name]
            matrices.append(confusion(labels, mask, classes))
            for key, value in (('macs', frame.macs_at[-1]), ('ms', passed), ('bytes', len(frame.payload(engine)))):
                costs[key].append(value)
            if name == CBT:
                first = frame.outputs[0].stopped
                active.append(float(engine.bundle.tiling.active(first).mean()))
        report()
    return {name: Outcome({'name': name}, np.array(matrices),
                          {key: np.array(values, float) for key, values in costs.items()})
            for name, (matrices, costs) in found.items()}, np.array(active)


class _Stages(Engine):
    """The engine, with its stages and heads run one after the other on whole maps or on given tiles."""

    def behind_first(self, image: np.ndarray, share: float) -> list:
        """[(graphs, tensors, active tiles)] of both sides: what runs behind the first exits, and on what.

        active: the `share` of the tiles of which the exit before is least sure.
        """
        robot = self.segment(image, 'never')
        server = self.finish(self.encode(robot), robot.placement)
        sides = [(self._onboard_stages, self.bundle.onboard_exits, robot, robot.outputs[0]),
                 (self._rest_stages, self.bundle.offboard_exits, server, robot.outputs[-1])]
        return [(self._graphs_behind(stages, exits), side.tensors, self._least_sure(before, share))
                for stages, exits, side, before in sides]

    def _graphs_behind(self, stages, exits):
        first = self.bundle.stages[0]
        return [graph for stage in stages if stage != first
                for graph in (stage, *(exit_.graph for exit_ in exits if exit_.stage == stage))]

    def _least_sure(self, output, share):
        tiling = self.bundle.tiling
        doubt = np.zeros((self.bundle.height // GRID, self.bundle.width // GRID))
        probabilities = output.grid_probabilities.max(0)
        doubt[:probabilities.shape[0], :probabilities.shape[1]] = 1 - probabilities
        per_tile = doubt.reshape(tiling.rows, doubt.shape[0] // tiling.rows, tiling.columns, -1).mean((1, 3))
        chosen = np.zeros(per_tile.size, bool)
        chosen[np.argsort(-per_tile.ravel())[:round(share * per_tile.size)]] = True
        return chosen.reshape(per_tile.shape)

    def milliseconds(self, graphs: Sequence, tensors: dict, active: np.ndarray | None) -> float:
        """What these graphs take, gathering of tiles included."""
        result = Result(None, tensors=dict(tensors), active=active)
        began = time.perf_counter()
        for graph in graphs:
            self._run(graph, result)
        return (time.perf_counter() - began) * 1e3


def sparse_ratio(bundle, images: Sequence, threads: int, rounds: int) -> dict:
    """Time of all stages and heads behind the first exits on a quarter of the tiles, over that on whole maps, in turn.

    Returns {onboard, offboard, all}: ratios of the means over images of the medians over rounds.
    """
    engine, times = _Stages(bundle, threads=threads), {'onboard': [], 'offboard': []}
    for image in images:
        for side, (graphs, tensors, active) in zip(times, engine.behind_first(image, QUARTER)):
            pairs = [(engine.milliseconds(graphs, tensors, active), engine.milliseconds(graphs, tensors, None))
                     for _ in range(rounds + 1)][1:]
            times[side].append([median(values) for values in zip(*pairs)])
    sums = {side: np.array(values).mean(0) for side, values in times.items()}
    sums['all'] = sums['onboard'] + sums['offboard']
    return {side: float(sparse / dense) for side, (sparse, dense) in sums.items()}


def dense_loss(engine: Engine, images: Sequence, rounds: int) -> float:
    """Share of time that stopping pixels adds where none stops: the engine then runs on whole maps."""
    never = [2.0] * len(engine.bundle.classes)
    times = median_times({'pixels': lambda image: to_the_end(engine, image, CBT, limits=never),
                          'frames': lambda image: to_the_end(engine, image, partial=False)}, images, rounds)
    return times['pixels'] / times['frames'] - 1


def claims_of(found: dict, weights: np.ndarray) -> tuple:
    """(claims, intervals, further figures with theirs) of the outcomes; weights as of `savings.resamples`."""
    swept = {name: sweep([outcome], weights) for name, outcome in found.items()}

    def saved(name, other, cost):
        return 1 - swept[name].costs[cost][:, 0] / swept[other].costs[cost][:, 0]

    def change(name, other):
        return 100 * (swept[name].mious[:, 0] - swept[other].mious[:, 0])
    uniform = [swept[name] for name in UNIFORM]
    both = Sweep((), np.concatenate([each.mious for each in uniform], 1),
                 {'macs': np.concatenate([each.costs['macs'] for each in uniform], 1)})
    equal = cost_at(both.mious, both.costs['macs'], swept[CBT].mious)[:, 0]
    values = {'cbt_vs_uniform_macs_saved_share': saved(CBT, ADP_C, 'macs'),
              'cbt_vs_uniform_miou_change_pp': change(CBT, ADP_C),
              'cbt_vs_uniform_time_saved_share': saved(CBT, ADP_C, 'ms'),
              'unsettled_bytes_saved_share': saved(CELLS, WHOLE, 'bytes'),
              'unsettled_miou_change_pp': change(CELLS, WHOLE)}
    more = {'cbt_vs_uniform_swept_macs_saved_share': 1 - swept[CBT].costs['macs'][:, 0] / equal,
            'cbt_vs_dense_time_saved_share': saved(CBT, WHOLE, 'ms'),
            'cbt_vs_dense_macs_saved_share': saved(CBT, WHOLE, 'macs'),
            'cbt_vs_dense_miou_change_pp': change(CBT, WHOLE)}
    if PAPER in swept:
        more |= {'paper_cbt_vs_uniform_macs_saved_share': saved(PAPER, ADP_C, 'macs'),
                 'paper_cbt_vs_uniform_miou_change_pp': change(PAPER, ADP_C)}

    def point(group):
        return {name: float(each[0]) for name, each in group.items() if np.isfinite(each[0])}
    return (point(values), {name: intervals(each) for name, each in values.items()},
            {name: {'value': value, 'intervals': intervals(more[name])} for name, value in point(more).items()})


def measure(engine: Engine, samples: Iterable, timed: Sequence, weights: np.ndarray, threads: int, rounds: int,
            report: Callable[[], None] = lambda: None) -> dict:
    """The section `pixels` of `criteria.json`: rows, claims, intervals, more, the histogram of active shares, times.

    timed: images to time stages on. weights: as of `savings.resamples`.
    """
    found, active = outcomes(engine, samples, report)
    claims, around, more = claims_of(found, weights)
    ratios = sparse_ratio(engine.bundle, timed, threads, rounds)
    claims |= {'sparse_time_ratio_at_quarter': ratios['all'],
               'dense_path_loss_share': dense_loss(engine, timed, rounds)}
    rows = []
    for name, outcome in found.items():
        one = sweep([outcome], weights)
        rows.append({'name': name, 'miou': float(one.mious[0, 0]), 'miou_intervals': intervals(one.mious[:, 0]),
                     'mean_macs': mean(outcome.costs['macs']), 'latency_ms': mean(outcome.costs['ms']),
                     'bytes': mean(outcome.costs['bytes'])})
    counts, _ = np.histogram(active, SHARES, (0, 1))
    return {'rows': rows, 'claims': claims, 'intervals': around, 'more': more, 'sparse_time_ratios': ratios,
            'active_shares': {'mean': float(active.mean()), 'histogram': (counts / len(active)).round(4).tolist()}}
