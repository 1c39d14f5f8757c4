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
"""The search itself: every choice of exits, criterion and thresholds against a budget.

After MESS (Kouris et al., "Multi-Exit Semantic Segmentation Networks", ECCV 2022): number, place and architecture of
the exits and the exit policy are chosen together, exhaustively, from outputs stored once.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ee_seg_ros.search.cascades import Counts, Trial, nested, pareto, prune, run_alone, run_anytime, run_cascade
from ee_seg_ros.search.observations import PAIRED, SINGLE, Candidates

MODES = ('input-dependent', 'budgeted', 'anytime')
COSTS = ('macs', 'ms', 'bytes')
LEVELS = (17, 9, 3)     # coarser than a bundle's curves: thousands of choices are compared
HEADS_PER_PLACE = 4


class SearchError(ValueError):
    """Nothing that can be found meets what was asked for; the message says how far off it is."""


@dataclass(frozen=True)
class Goal:
    """What to look for.

    mode: `input-dependent` (a criterion stops), `budgeted` (one exit, a static network) or `anytime` (each exit puts
    out its mask). cost: what the Pareto front is drawn over: `macs`, `ms`, or `bytes` sent, means per image. limits:
    cost -> at most so much, of as many costs as wanted. miou: at least so much, 0..1, for the least cost; None: as much
    as possible within the limits. exits: at most so many, the last included. last: name of the exit that must be the
    last one (None: any). criteria: to choose among. split: whether frames that do not settle onboard are finished
    offboard; else everything runs on one computer. splits: units behind which the network may be split for that
    (None: behind all that were trained).
    Raises ValueError for what makes no sense.
    """

    mode: str = 'input-dependent'
    cost: str = 'macs'
    limits: dict = field(default_factory=dict)
    miou: float | None = None
    exits: int = 4
    last: str | None = None
    criteria: tuple = (*SINGLE, *PAIRED)
    split: bool = True
    splits: tuple | None = None

    def __post_init__(self):
        for what, given, known in (('mode', self.mode, MODES), ('cost', self.cost, COSTS)):
            if given not in known:
                raise ValueError(f"{what} {given!r} is not known: choose one of {', '.join(known)}")
        for what, given, known in (('limit', self.limits, COSTS), ('criterion', self.criteria, (*SINGLE, *PAIRED))):
            if not set(given) <= set(known):
                raise ValueError(f"{what} {', '.join(sorted(set(given) - set(known)))} is not known: choose among "
                                 f"{', '.join(known)}")
        if self.cost not in self.limits and self.miou is None:
            raise ValueError(f'how much {self.cost} may it cost? Give that, or the mIoU that is needed at least')
        if any(not limit > 0 for limit in self.limits.values()):
            raise ValueError('limits must be positive numbers, not ' + ', '.join(
                _amount(limit, name) for name, limit in self.limits.items()))
        if self.miou is not None and not 0 < self.miou < 1:
            raise ValueError(f'the wanted mIoU {self.miou} must lie between 0 and 1')
        if self.cost == 'bytes' and not self.may_forward:
            raise ValueError('bytes are only sent in mode input-dependent over a split: give another cost')
        if self.splits is not None and not (self.splits and self.may_forward):
            raise ValueError('splits are chosen among in mode input-dependent over a split: name at least one there, '
                             'none elsewhere')
        if self.last and self.mode == 'budgeted':
            raise ValueError(f'mode budgeted looks for one exit: ask for {self.last} alone by exporting it')
        if self.exits < 2 and self.mode != 'budgeted':
            raise ValueError(f'{self.exits} exits are none to choose between: at least 2, or mode budgeted')

    @property
    def may_forward(self) -> bool:
        """Whether anything may be finished offboard."""
        return self.split and self.mode == 'input-dependent'

    def splits_among(self, units: Sequence) -> list:
        """Those of `units` (all behind which there is a split) to choose among. Raises ValueError for others."""
        unknown = set(self.splits or ()) - set(units)
        if unknown:
            raise ValueError(f"there is no split behind unit {', '.join(map(str, sorted(unknown)))}: choose among "
                             f"{', '.join(map(str, units))}")
        return [unit for unit in units if self.may_forward and (self.splits is None or unit in self.splits)]


@dataclass(frozen=True)
class Found:
    """What a search found.

    front: the Pareto front from cheap to dear, a list of records (see `record`). chosen: the one that meets the goal.
    tried: number of settings compared.
    """

    front: list
    chosen: dict
    tried: int


def _choices(candidates, kept, goal):
    if goal.last is None:
        yield from nested(candidates, kept, 2, goal.exits)
        return
    if goal.last not in candidates.names:
        return    # not with this split
    last = candidates.names.tolist().index(goal.last)
    before = [index for index in kept if candidates.places[index] < candidates.places[last]]
    yield from ((*exits, last) for exits in nested(candidates, before, 1, goal.exits - 1))


def _forwards(candidates, exits, goal):
    """Whether some frames are forwarded: the last of these exits lies behind the split."""
    return goal.may_forward and not candidates.onboard[exits[-1]]


def trials(candidates: Candidates, costs: dict, goal: Goal, forwarding: Sequence = (False, True)) -> Iterator[Trial]:
    """Everything that the goal's mode allows, of the candidates that are worth trying.

    forwarding: whether to try what forwards nothing (False), what does (True), or both.
    """
    size = costs['macs' if goal.cost == 'bytes' else goal.cost]
    kept = prune(candidates, size, HEADS_PER_PLACE)
    if goal.mode == 'budgeted':
        yield from (run_alone(candidates, costs, index) for index in kept)
    elif goal.mode == 'anytime':
        horizon = goal.limits.get(goal.cost) or float(size.alone.max())
        yield from (run_anytime(candidates, costs, exits, goal.cost, horizon)
                    for exits in _choices(candidates, kept, goal))
    else:
        counts = Counts(candidates)
        for exits in _choices(candidates, kept, goal):
            if _forwards(candidates, exits, goal) not in forwarding:
                continue
            if goal.split and not candidates.onboard[exits[0]]:
                continue    # the robot would have no mask of its own
            for criterion in goal.criteria:
                yield run_cascade(candidates, counts, costs, exits, criterion, goal.split, levels=LEVELS)


def _rows(trial, rows):
    return replace(trial, thresholds=trial.thresholds[rows], miou=trial.miou[rows], shares=trial.shares[rows],
                   costs={name: values[rows] for name, values in trial.costs.items()})


def record(unit: int | None, candidates: Candidates, trial: Trial, row: int, goal: Goal) -> dict:
    """One setting as JSON.

    Keys: mode, exits (names, the last is unconditional), split (`unit`; None: nothing is forwarded),
    criterion, thresholds, miou, macs, ms, bytes (means per image), exit_shares, exit_mious (each exit for all images).

    In mode anytime `miou` is the mean over the time allowed (`run_anytime`), and the costs are those of all exits.
    """
    index = list(trial.exits)
    return {'mode': goal.mode, 'exits': candidates.names[index].tolist(),
            'split': unit if _forwards(candidates, index, goal) else None,
            'criterion': trial.criterion, 'thresholds': trial.thresholds[row].tolist(), 'miou': float(trial.miou[row]),
            **{name: float(trial.costs[name][row]) for name in COSTS},
            'exit_shares': trial.shares[row].tolist(), 'exit_mious': candidates.mious[index].tolist()}


def _amount(value, cost):
    """A cost as people read it."""
    return f'{value / 1e9:.4g} GMAC' if cost == 'macs' else f'{value:.4g} {cost}'


def _choose(front, goal):
    """The record of the front that meets the goal. Raises SearchError."""
    limit = goal.limits.get(goal.cost, np.inf)
    fitting = [entry for entry in front if entry[goal.cost] <= limit and entry['miou'] >= (goal.miou or 0)]
    if fitting:
        return fitting[0 if goal.miou else -1]
    asked = [f'at most {_amount(value, name)}' for name, value in goal.limits.items()]
    asked += [f'an mIoU of at least {goal.miou:g}'] if goal.miou else []
    reached = 'nothing keeps the other limits' if not front else (
        f"the cheapest costs {_amount(front[0][goal.cost], goal.cost)} at an mIoU of {front[0]['miou']:.4f}, the best "
        f"has an mIoU of {front[-1]['miou']:.4f} at {_amount(front[-1][goal.cost], goal.cost)}")
    raise SearchError(f"no choice of exits in mode {goal.mode} gives {' and '.join(asked)}: {reached}; ask for less, "
                      'or train lighter or better heads')


def find(divided: dict, goal: Goal) -> Found:
    """Compare everything that the goal allows.

    divided: unit behind which the network is split (None: nowhere) -> (`Candidates`, {'macs': Costs, 'ms': Costs}) as
    they are then, the main split first. What forwards nothing is tried with that one only.
    The front keeps the limits of the other costs, but not that of its own. Raises SearchError, ValueError.
    """
    kept, tried, main, units = [], 0, next(iter(divided)), goal.splits_among(list(divided))
    names = divided[main][0].names
    if goal.last is not None and goal.last not in names:
        raise ValueError(f"there is no exit {goal.last!r} to be the last: choose one of {', '.join(names)}")
    others = {name: limit for name, limit in goal.limits.items() if name != goal.cost}
    for unit, (candidates, costs) in divided.items():
        forwarding = [kind for kind, wanted in ((False, unit == main), (True, unit in units)) if wanted]
        for trial in trials(candidates, costs, goal, forwarding):
            tried += len(trial.miou)
            fits = np.flatnonzero(np.all([trial.costs[name] <= limit for name, limit in others.items()], axis=0)
                                  if others else np.ones(len(trial.miou), bool))
            rows = fits[pareto(trial.costs[goal.cost][fits], trial.miou[fits])]
            if len(rows):
                kept.append((unit, _rows(trial, rows)))
    front = []
    if kept:
        places = [(unit, divided[unit][0], trial, row) for unit, trial in kept for row in range(len(trial.miou))]
        best = pareto(np.concatenate([trial.costs[goal.cost] for _, trial in kept]),
                      np.concatenate([trial.miou for _, trial in kept]))
        front = [record(*places[index], goal) for index in best]
    return Found(front, _choose(front, goal), tried)


def cross_check(divided: dict, goal: Goal) -> dict | None:
    """How far the search flatters itself: choose on one half of the images, measure on the other, and the reverse.

    divided: see `find`. Halves are the first and the last images, for neighbours are alike. Returns means of both ways:
    {'promised_miou', 'kept_miou', 'promised_COST', 'kept_COST'}; None where a half has nothing that meets the goal, or
    in mode anytime.
    """
    main = next(iter(divided))
    count = len(divided[main][0].matrices)
    if goal.mode == 'anytime' or count < 2:
        return None
    halves = [{unit: (candidates.subset(part), costs) for unit, (candidates, costs) in divided.items()}
              for part in np.array_split(np.arange(count), 2)]
    both = []
    for here, there in (halves, halves[::-1]):
        try:
            promised = find(here, goal).chosen
        except SearchError:
            return None
        candidates, costs = there[main if promised['split'] is None else promised['split']]
        exits = tuple(candidates.names.tolist().index(name) for name in promised['exits'])
        trial = run_alone(candidates, costs, exits[0]) if len(exits) == 1 else run_cascade(
            candidates, Counts(candidates), costs, exits, promised['criterion'], goal.split,
            np.array([promised['thresholds']]))
        both.append((promised['miou'], trial.miou[0], promised[goal.cost], trial.costs[goal.cost][0]))
    keys = ('promised_miou', 'kept_miou', f'promised_{goal.cost}', f'kept_{goal.cost}')
    return dict(zip(keys, map(float, np.mean(both, axis=0))))
