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
"""What the exits of a bundle cost on this machine: multiply-accumulates, and milliseconds of each graph."""
import time
from collections.abc import Callable

import numpy as np

from ee_seg_ros.evaluation.timing import Clock
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.outputs import ExitOutput
from ee_seg_ros.search.cascades import costs_of
from ee_seg_ros.search.observations import run_all

ROUNDS = 30
_WARM_UP = 3


# A search fits no models of gains and no class limits.
_JUDGED = tuple(name for name, rule in CRITERIA.items() if rule.score and not rule.needs)


def _judging_ms(name, before, output):
    """What a criterion takes to judge an output after another; its maps are computed anew, as they are in a run."""
    fresh = ExitOutput(output.bundle, output.exit, output.logits, output.placement)
    began = time.perf_counter()
    CRITERIA[name].score([before, fresh])
    return (time.perf_counter() - began) * 1e3


def profile(bundle: Bundle, image: np.ndarray, threads: int = 2, rounds: int = ROUNDS,
            report: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """{'macs': Costs, 'ms': Costs} of a bundle's exits; ms are medians on this machine through onnxruntime.

    image: uint8 (H, W, 3) RGB. Every round runs all stages, heads, encoder and decoder once, one after the other, so
    that a slow moment falls on all alike. Judging is part of the milliseconds only.
    """
    clock, judging = Clock(bundle, threads), []
    for done in range(_WARM_UP + rounds):
        if done == _WARM_UP:
            clock.times.clear()
            judging.clear()
        outputs, _ = run_all(clock, image)
        judging += [{name: _judging_ms(name, outputs[0], output) for name in _JUDGED} for output in outputs]
        report(done + 1, _WARM_UP + rounds)
    ms = {graph: float(np.median(times)) for graph, times in clock.times.items()}
    judged = {name: float(np.median([times[name] for times in judging])) for name in judging[0]}
    return {'macs': costs_of(bundle, {name: graph['macs'] for name, graph in bundle.graphs.items()}, {}),
            'ms': costs_of(bundle, ms, judged)}
