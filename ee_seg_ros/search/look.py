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
"""All that the search needs to know about a network with its candidates, for each place at which it may be split."""
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.search.calibration import set_temperatures
from ee_seg_ros.search.cascades import Costs
from ee_seg_ros.search.observations import Candidates, join_candidates, joined, observe_candidates
from ee_seg_ros.search.profile import profile


@dataclass(frozen=True)
class Seen:
    """A network split behind one unit: its exits, {'macs': Costs, 'ms': Costs}, and `calibrate_temperatures` of it."""

    candidates: Candidates
    costs: dict
    calibration: dict

    def describe(self, unit: int | None) -> list:
        """Every candidate as JSON, in order of depth; its costs are those of the exit as a network of its own."""
        seen, costs = self.candidates, self.costs
        rows = zip(seen.names, seen.onboard, seen.mious, costs['macs'].alone, costs['ms'].alone, costs['macs'].heads,
                   costs['ms'].heads, *self.calibration.values())
        keys = ('macs', 'ms', 'head_macs', 'head_ms', 'temperature', 'ece_before', 'ece_after')
        return [{'name': str(name), 'split': unit, 'onboard': bool(onboard), 'miou': float(miou),
                 **dict(zip(keys, map(float, numbers)))} for name, onboard, miou, *numbers in rows]

    def followed_by(self, count: int, other: 'Seen') -> 'Seen':
        """The first `count` exits of this one, then those of `other` but its first."""
        costs = {name: Costs(joined(cost.reach, count, other.costs[name].reach),
                             joined(cost.heads, count, other.costs[name].heads), cost.judging)
                 for name, cost in self.costs.items()}
        return Seen(join_candidates(self.candidates, count, other.candidates), costs,
                    {key: values[:count] + other.calibration[key][1:] for key, values in self.calibration.items()})


@dataclass(frozen=True)
class Look:
    """Runs the candidates of a network on labelled images.

    classes, size: as of `models.export.export`. samples: called for (number, iterator) of (image, labels). image: what
    milliseconds are measured on. threads, progress: as of `search.search`.
    """

    net: object
    classes: list
    size: tuple
    samples: Callable
    image: np.ndarray
    threads: int
    progress: Callable

    def main(self) -> Seen:
        """All exits, with the network's main split."""
        from ee_seg_ros.models.splits import with_split
        return self._run(with_split(self.net, self.net.split_unit), 'candidates')

    def behind(self, unit: int, main: Seen) -> Seen:
        """All exits that there are with the split behind `unit`.

        What neither split touches is taken from `main`; only the rest is run. Raises ValueError if no exit is onboard.
        """
        from ee_seg_ros.models.multi_exit import FINAL, select_exits
        from ee_seg_ros.models.splits import with_split
        net = with_split(self.net, unit)
        places = {exit_['name']: exit_['unit'] for exit_ in net.spec['exits']}
        names = [name for name in net.exit_names if name != FINAL]
        count = sum(place <= min(unit, self.net.split_unit) for place in places.values())
        if not count:
            raise ValueError(f'no exit lies before the split behind unit {unit}: the robot would have no mask of its '
                             'own; train a candidate there, or leave that split out')
        kept = [names[0], *names[count:]]    # a bundle has an exit on either side of its split
        return main.followed_by(count, self._run(select_exits(net, dict(zip(kept, kept))),
                                                 f'candidates, split behind unit {unit}'))

    def _run(self, net, what):
        from ee_seg_ros.models.export import export
        with tempfile.TemporaryDirectory() as folder:
            export(net, folder, 'candidates', {'data': 'none', 'licence': 'none'}, self.classes, *self.size,
                   with_weights=False)
            bundle, calibration = self._calibrated(Bundle.load(folder), what)
            total, samples = self.samples()
            with self.progress(what) as report:
                candidates = observe_candidates(Engine(bundle, threads=self.threads), samples,
                                                lambda done: report(done, total))
            with self.progress('profile') as report:
                return Seen(candidates, profile(bundle, self.image, self.threads, report=report), calibration)

    def _calibrated(self, bundle, what):
        from ee_seg_ros.search.temperature import calibrate_temperatures, labelled_pixels
        total, samples = self.samples()
        with self.progress(f'temperatures of {what}') as report:
            found = calibrate_temperatures(labelled_pixels(Engine(bundle, threads=self.threads), samples,
                                                           lambda done: report(done, total)))
        return set_temperatures(bundle, found['temperatures']), found
