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

import cv2
import numpy as np

from ee_seg_ros.evaluation.evaluate import to_the_end
from ee_seg_ros.evaluation.metrics import confusion
from ee_seg_ros.evaluation.savings import Outcome, Sweep, cost_at, intervals, sweep
from ee_seg_ros.evaluation.timing import median_times, size_of
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.outputs import GRID, ExitOutput
from ee_seg_ros.inference.result import Result
from ee_seg_ros.inference.windows import HALO, Window, means, whole

WHOLE, CELLS, CBT, PAPER = 'all pixels, all cells', 'all pixels, unsettled cells', 'class_threshold', 'CBT 0.99..0.998'
DENSE = 'no pixel stops'    # by a rule that looks at the same exits as the others
UNIFORM = {f'uniform {limit:g}': limit for limit in (0.998, 0.99, 0.95, 0.9, 0.8, 0.7)}
ADP_C, NEVER = 'uniform 0.998', 2.0    # the paper's; no probability exceeds it
QUARTER, TOLERANCE, SHARES = 0.25, 0.01, 10    # of the cells, twice; bins of the histogram


def settings_of(engine: Engine) -> dict:
    """Name -> (criterion, limits, whether only unsettled cells are forwarded) of all that is compared."""
    bundle = engine.bundle
    never = [NEVER] * len(bundle.classes)
    found = {WHOLE: ('never', None, False), CELLS: ('never', None, True), DENSE: ('uniform', never, False),
             CBT: (CBT, None, True)}
    paper = bundle.document['pixels'].get('paper_limits')
    if paper is not None:
        found[PAPER] = (CBT, paper, True)
    return found | {name: ('uniform', [limit] * len(bundle.classes), True) for name, limit in UNIFORM.items()}


def outcomes(engine: Engine, samples: Iterable, report: Callable[[], None] = lambda: None) -> tuple:
    """({name: Outcome}, active shares): all of `settings_of` on every (image, labels), each time in another order.

    Costs are `macs`, `ms` (image to final mask) and `bytes`, sent. active shares: float64 (n,), of the cells for which
    `class_threshold` runs the last stage.
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
                active.append(_last_share(frame))
        report()
    return {name: Outcome({'name': name}, np.array(matrices),
                          {key: np.array(values, float) for key, values in costs.items()})
            for name, (matrices, costs) in found.items()}, np.array(active)


def _last_share(frame):
    """Share of the cells for which the last stage of a frame ran, the halo not counted; 0 where it never ran."""
    side = frame.sides[-1]
    if len(frame.sides) == 1 and side.settled:
        return 0.0
    cells = side.output.bundle.cells
    return 1.0 if side.window is None else side.window.area / (cells[0] * cells[1])


class _Stages(Engine):
    """The engine, with its stages and heads run one after the other on whole maps or in a given window."""

    def behind_first(self, image: np.ndarray, share: float) -> list:
        """[(graphs, tensors, window)] of both sides: what runs behind the first exits, and on what.

        window: of a `share` of the cells, where the exit before is least sure.
        """
        robot = self.segment(image, 'never')
        server = self.finish(self.encode(robot), robot.placement)
        sides = [(self._onboard_stages, self.bundle.onboard_exits, robot, robot.outputs[0]),
                 (self._rest_stages, self.bundle.offboard_exits, server, robot.outputs[-1])]
        return [(self._graphs_behind(stages, exits), side.tensors, least_sure(before, share))
                for stages, exits, side, before in sides]

    def _graphs_behind(self, stages, exits):
        first = self.bundle.stages[0]
        return [graph for stage in stages if stage != first
                for graph in (stage, *(exit_.graph for exit_ in exits if exit_.stage == stage))]

    def milliseconds(self, graphs: Sequence, tensors: dict, window: Window | None) -> float:
        """What these graphs take, cropping and the halo included."""
        result = Result(None, tensors=dict(tensors), window=window)
        if window is not None:
            result.outer = window.widened(HALO, whole(self.bundle.cells))
        began = time.perf_counter()
        for graph in graphs:
            self._run(graph, result)
        return (time.perf_counter() - began) * 1e3


def least_sure(output: ExitOutput, share: float) -> Window:
    """The window of a share of the cells, as near as whole cells come to it, of which an exit is least sure."""
    bundle = output.bundle
    doubt = np.zeros((bundle.height // GRID, bundle.width // GRID), np.float32)
    probabilities = output.grid_probabilities.max(0)
    doubt[:probabilities.shape[0], :probabilities.shape[1]] = 1 - probabilities
    rows, columns = bundle.cells
    sums = cv2.integral(means(doubt, bundle.cells))
    best, most = whole(bundle.cells), -1.0
    for height in range(1, rows + 1):
        width = round(share * rows * columns / height)
        if not 1 <= width <= columns or abs(height * width / (rows * columns) - share) > TOLERANCE:
            continue
        held = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        top, left = np.unravel_index(held.argmax(), held.shape)
        if held[top, left] > most:
            best, most = Window(int(top), int(top) + height, int(left), int(left) + width), held[top, left]
    return best


def sparse_ratio(bundle, images: Sequence, threads: int, rounds: int) -> dict:
    """Time of all stages and heads behind the first exits for a quarter of the cells, over that of whole maps, in turn.

    Returns {onboard, offboard, all}: ratios of the means over images of the medians over rounds.
    """
    engine, times = _Stages(bundle, threads=threads), {'onboard': [], 'offboard': []}
    for image in images:
        for side, (graphs, tensors, window) in zip(times, engine.behind_first(image, QUARTER)):
            pairs = [(engine.milliseconds(graphs, tensors, window), engine.milliseconds(graphs, tensors, None))
                     for _ in range(rounds + 1)][1:]
            times[side].append([median(values) for values in zip(*pairs)])
    sums = {side: np.array(values).mean(0) for side, values in times.items()}
    sums['all'] = sums['onboard'] + sums['offboard']
    return {side: float(sparse / dense) for side, (sparse, dense) in sums.items()}


def dense_loss(engine: Engine, images: Sequence, threads: int, rounds: int) -> float:
    """Share of time that stopping pixels adds where none stops: the engine then runs on whole maps.

    By the uniform rule, for which every cell with some doubt is worth it, and with all cells sent; against frames that
    run through the same heads and do not stop.
    """
    bundle, never = engine.bundle, [NEVER] * len(engine.bundle.classes)
    run = {exit_.name for exit_ in bundle.exits_for(criterion='uniform')}
    entries = [entry for entry in bundle.document['exits'] if entry['name'] in run]
    unjudged = Engine(Bundle(bundle.path, {**bundle.document, 'exits': entries}), threads=threads)
    times = median_times({'pixels': lambda image: to_the_end(engine, image, 'uniform', False, never),
                          'frames': lambda image: to_the_end(unjudged, image, partial=False)}, images, rounds)
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
            'cbt_vs_dense_time_saved_share': saved(CBT, DENSE, 'ms'),
            'cbt_vs_dense_macs_saved_share': saved(CBT, DENSE, 'macs'),
            'cbt_vs_dense_miou_change_pp': change(CBT, DENSE)}
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
               'dense_path_loss_share': dense_loss(engine, timed, threads, rounds)}
    rows = []
    for name, outcome in found.items():
        one = sweep([outcome], weights)
        rows.append({'name': name, 'miou': float(one.mious[0, 0]), 'miou_intervals': intervals(one.mious[:, 0]),
                     'mean_macs': mean(outcome.costs['macs']), 'latency_ms': mean(outcome.costs['ms']),
                     'bytes': mean(outcome.costs['bytes'])})
    counts, _ = np.histogram(active, SHARES, (0, 1))
    return {'rows': rows, 'claims': claims, 'intervals': around, 'more': more, 'sparse_time_ratios': ratios,
            'active_shares': {'mean': float(active.mean()), 'histogram': (counts / len(active)).round(4).tolist()}}
