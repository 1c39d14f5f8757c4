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
"""What a frame takes to run, by where it stops: all ways through a bundle, and their times, measured in turn.

What a frame costs depends on where it stops and, where later stages run on what is not settled only, on how much that
is. So the time of every way through the network is the mean over a sample of images of the median of several rounds,
all ways taking turns.
"""
import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from statistics import mean, median

import cv2
import numpy as np

from ee_seg_ros.evaluation.evaluate import Observations, to_the_end
from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.criteria import CRITERIA, Criterion
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.outputs import ExitOutput

TIMED_IMAGES, ROUNDS = 12, 8
_AGAIN = 3    # times that a judging is repeated


@contextmanager
def opencv_threads(threads: int) -> Iterator[None]:
    """OpenCV with so many threads, as many as the networks have; with what it had before when this is left."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def stopping_at(rule: Criterion, index: int, judged: int) -> tuple:
    """Thresholds, one per judged exit, with which every image stops at exit `index`, whatever it scores."""
    never, at_once = (-np.inf, np.inf) if rule.direction == 'below' else (np.inf, -np.inf)
    return tuple(at_once if place == index else never for place in range(judged))


def ways(engine: Engine, observed: Observations) -> dict:
    """All ways through a bundle: (criterion, exit index) -> callable(image), and (None, index) for an exit alone.

    An exit at which a criterion gives no score is none at which it can stop. Each way ends with the mask.
    """
    bundle, last = engine.bundle, len(engine.bundle.exits) - 1

    def alone(name):
        return lambda image: engine.run_exit(image, name).output.mask(*size_of(image))

    def stops(criterion, index):
        thresholds = stopping_at(CRITERIA[criterion], index, last)
        return lambda image: run_pair(engine, image, criterion, thresholds).mask(*size_of(image))
    found = {(None, index): alone(exit_.name) for index, exit_ in enumerate(bundle.exits)}
    for name in bundle.document['criteria']:
        known = np.isfinite(observed.scores[name]).any(0)
        found |= {(name, index): stops(name, index) for index in range(last + 1) if index == last or known[index]}
    return found


def size_of(image: np.ndarray) -> tuple:
    """(width, height) of an image."""
    return image.shape[1], image.shape[0]


def median_times(jobs: dict, images: Sequence, rounds: int, report: Callable[[], None] = lambda: None) -> dict:
    """Milliseconds of each job (key -> callable(image)): the mean over the images of the median over the rounds.

    Every image goes through all jobs, in an order drawn anew each time, before the next image comes: so whatever else
    the machine does meets all jobs alike, and none always runs behind the same other.
    """
    times = {key: [[] for _ in images] for key in jobs}
    order, random = list(jobs), Random(0)
    for job in jobs.values():    # the first run of a graph allocates
        job(images[0])
    for _ in range(rounds):
        for index, image in enumerate(images):
            random.shuffle(order)
            for key in order:
                began = time.perf_counter()
                jobs[key](image)
                times[key][index].append((time.perf_counter() - began) * 1e3)
            report()
    return {key: mean(map(median, values)) for key, values in times.items()}


class Clock(Engine):
    """The engine as it runs, with times noted, lists of ms: of each graph on whole maps, and of judging.

    times: by the graph's name. judging: by criterion and name of the exit, where there was a score; pairs: as it
    happens, behind a graph that has filled the caches, and of the same again, at once.
    """

    def __init__(self, bundle: Bundle, threads: int):
        super().__init__(bundle, threads=threads)
        self.times, self.judging = defaultdict(list), defaultdict(list)

    def _run(self, graph, result):
        began = time.perf_counter()
        super()._run(graph, result)
        if result.window is None:
            self.times[graph].append((time.perf_counter() - began) * 1e3)

    def _judge(self, rule, limits, result):
        taken = []
        for again in [result, *(copy.copy(result) for _ in range(_AGAIN))]:
            *before, last = again.outputs
            again.outputs = [*before, ExitOutput(last.bundle, last.exit, last.logits, last.placement, last.stopped)]
            began = time.perf_counter()
            super()._judge(rule, limits, again)
            taken.append((time.perf_counter() - began) * 1e3)
        if result.score is not None:
            self.judging[rule.name, result.exit_name].append((taken[0], median(taken[1:])))


def judging_times(bundle: Bundle, images: Sequence, criteria: Sequence[str], threads: int, rounds: int) -> dict:
    """criterion -> {ms, in_run_ms, share_of_stage}: what judging one exit takes, and that over a stage's mean time.

    ms: by itself, the mean of the medians at each of the exits where a criterion gives a score; in_run_ms: behind a
    graph, whose data are in the caches. A criterion that gives none is left out. images: uint8 (H, W, 3) RGB, each
    `rounds` times through all exits by each criterion in turn.
    """
    clock = Clock(bundle, threads)
    for _ in range(rounds):
        for image in images:
            to_the_end(clock, image, partial=False)    # the others may run stages in windows only
            for name in criteria:
                to_the_end(clock, image, name)
    stage, found = mean(median(clock.times[stage]) for stage in bundle.stages), {}
    for name in criteria:
        taken = [np.median(times, 0) for (judged, _), times in clock.judging.items() if judged == name]
        if taken:
            in_run, alone = map(float, np.mean(taken, 0))
            found[name] = {'ms': alone, 'in_run_ms': in_run, 'share_of_stage': alone / stage}
    return found
