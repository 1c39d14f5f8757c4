# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the exits of a bundle cost on this machine: multiply-accumulates, and milliseconds of each graph."""
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.outputs import ExitOutput
from ee_seg_ros.search.cascades import costs_of
from ee_seg_ros.search.observations import run_all

ROUNDS = 30
_WARM_UP = 3


class _Clock(Engine):
    """The engine as it runs, with the time of every graph noted: graph name -> list of ms."""

    def __init__(self, bundle, threads):
        super().__init__(bundle, threads=threads)
        self.times = defaultdict(list)

    def _run(self, graph, result):
        began = time.perf_counter()
        super()._run(graph, result)
        self.times[graph].append((time.perf_counter() - began) * 1e3)


def _judging(bundle, before, output):
    """criterion -> ms of judging `output` after `before`; its grid is computed anew each time, as it is in a run."""
    times = {}
    for name, rule in CRITERIA.items():
        if rule.score and not rule.needs:
            fresh = ExitOutput(bundle, output.exit, output.logits, output.placement)
            began = time.perf_counter()
            rule.score([before, fresh])
            times[name] = (time.perf_counter() - began) * 1e3
    return times


def profile(bundle: Bundle, image: np.ndarray, threads: int = 2, rounds: int = ROUNDS,
            report: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """{'macs': Costs, 'ms': Costs} of a bundle's exits; ms are medians on this machine through onnxruntime.

    image: uint8 (H, W, 3) RGB. Every round runs all stages, heads, encoder and decoder once, one after the other, so
    that a slow moment falls on all alike. Judging is part of the milliseconds only.
    """
    clock, judging = _Clock(bundle, threads), []
    for done in range(_WARM_UP + rounds):
        if done == _WARM_UP:
            clock.times.clear()
            judging.clear()
        outputs, _ = run_all(clock, image)
        judging += [_judging(bundle, outputs[0], output) for output in outputs]
        report(done + 1, _WARM_UP + rounds)
    ms = {graph: float(np.median(times)) for graph, times in clock.times.items()}
    judged = {name: float(np.median([times[name] for times in judging])) for name in judging[0]}
    return {'macs': costs_of(bundle, {name: graph['macs'] for name, graph in bundle.graphs.items()}, {}),
            'ms': costs_of(bundle, ms, judged)}
