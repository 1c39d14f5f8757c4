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
"""The engine: runs a bundle stage by stage with onnxruntime, stops at an exit that settles, resumes elsewhere."""
import time
from typing import Callable, Optional, Sequence

import numpy as np

from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.detector import Detector
from ee_seg_ros.inference.frame import Placement, preprocess
from ee_seg_ros.inference.graphs import CPU, Graphs
from ee_seg_ros.inference.outputs import GRID, ExitOutput, resized, together
from ee_seg_ros.inference.pixels import (
    OnboardMap,
    class_logits,
    classes_before,
    fill_means,
    keep_stopped,
    unsettled,
)
from ee_seg_ros.inference.result import Result
from ee_seg_ros.inference.windows import HALO, best_window, bounding_window, grow, means, shrink, whole, widen

PARTS = ('onboard', 'offboard', 'all')
WHOLE_ABOVE = 0.9    # of the cells: above this share whole maps run, for little is saved and borders cost


class Engine:
    """Runs one bundle.

    providers: onnxruntime's execution providers in order of preference; what is not there is left out with one call of
    `warn`, and the CPU is always the last resort. threads: per graph. part: which graphs are loaded: 'onboard' (stages
    up to the split, their exits, the feature encoder), 'offboard' (the rest) or 'all'.
    `providers` afterwards holds what is really in use. Raises BundleError for a bundle that cannot be loaded.
    """

    def __init__(self, bundle: Bundle, providers: Sequence[str] = (CPU,), threads: int = 2, part: str = 'all',
                 warn: Callable[[str], object] = print):
        if part not in PARTS:
            raise ValueError(f'part {part!r} is not one of {", ".join(PARTS)}')
        self.bundle, self._weights, self._cells = bundle, bundle.class_weights, bundle.cells
        if bundle.split is None and part == 'offboard':
            raise BundleError(f'bundle {bundle.name} has no split: all of it runs onboard, and nothing is left for an '
                              'offboard node; give a bundle with a split, or run the onboard node alone')
        last = bundle.stages.index(bundle.split['after']) + 1 if bundle.split else len(bundle.stages)
        self._onboard_stages, self._rest_stages = bundle.stages[:last], bundle.stages[last:]
        self._graphs = Graphs(bundle, self._graphs_of(part), providers, threads, warn)
        self.providers = self._graphs.providers
        self._detector = Detector(bundle) if any(map(bundle.deblurs, bundle.experts)) and part != 'offboard' else None
        if self._detector is not None and not self._detector.measures_blur:
            raise BundleError(f'the detector of bundle {bundle.name} does not measure blur, which an expert wants '
                              'taken back (deblurring): export it with --detector, one that is trained anew')

    def _graphs_of(self, part):
        bundle = self.bundle
        heads = [exit_ for expert in ('', *bundle.experts) for exit_ in bundle.exits_for(expert)]
        onboard = [*self._onboard_stages, *dict.fromkeys(exit_.graph for exit_ in heads if exit_.onboard)]
        offboard = [*self._rest_stages, *dict.fromkeys(exit_.graph for exit_ in heads if not exit_.onboard)]
        if bundle.split is not None:
            onboard.append(bundle.split['encode'])
            offboard.append(bundle.split['decode'])
        return {'onboard': onboard, 'offboard': offboard, 'all': onboard + offboard}[part]

    def _run(self, graph, result):
        """Run a graph on what is in `result`, on whole maps or in its window."""
        description, cells = self.bundle.graphs[graph], self._cells
        if result.window is None:
            result.tensors.update(self._graphs.run(graph, result.tensors))
            result.macs += description['macs']
            return
        found = self._graphs.run(graph, {name: self._crop(name, result) for name in description['inputs']})
        result.crops.update((name, (result.outer, array)) for name, array in found.items())
        result.macs += description['macs'] * result.outer.area / (cells[0] * cells[1])

    def _crop(self, name, result):
        """A map in the window that runs, with its halo, from the smallest part of it that there is."""
        outer, cells = result.outer, self._cells
        covered, array = result.crops.get(name) or (whole(cells), result.tensors[name])
        if covered != outer:
            array = np.ascontiguousarray(outer.inside(covered).of(array, covered.size))
            result.crops[name] = outer, array
        return array

    def _narrow(self, result, window):
        """Let what comes next run in a window (within the one before), unless that is nearly all of the maps."""
        cells, before = self._cells, result.outer
        outer = window.widened(HALO, before or whole(cells))
        if before is None and outer.area > WHOLE_ABOVE * cells[0] * cells[1]:
            return
        result.window, result.outer = window, outer
        window.fill_around(result.stopped, True)

    def _run_head(self, exit_, result):
        self._run(exit_.graph, result)
        previous = None
        if result.stopped is not None and (result.window is not None or result.stopped.any()):
            last = result.outputs[-1] if result.outputs else None
            logits, temperature = result.base if last is None else (last.logits, last.exit.temperature)
            previous = logits * np.float32(exit_.temperature / temperature)    # the same probabilities as before
            shape = tuple(self.bundle.tensors[exit_.logits]['shape'][2:])
            if previous.shape[1:] != shape and shape >= max(previous.shape[1:], result.stopped.shape):
                previous = resized(previous, *shape)    # once, not again for each use
        if result.window is None:
            logits = result.tensors.pop(exit_.logits)[0]
        else:
            window, outer, cells = result.window, result.outer, self._cells
            logits = resized(previous, *shape)
            window.of(logits, cells)[:] = window.inside(outer).of(result.crops.pop(exit_.logits)[1][0], outer.size)
        logits = together(exit_, logits, result.outputs)
        if previous is not None:
            logits = keep_stopped(previous, logits, result.stopped)
        result.outputs.append(ExitOutput(self.bundle, exit_, logits, result.placement, result.stopped))
        result.macs_at.append(result.macs)

    def _stop_pixels(self, result, limits, worth):
        """Stop the pixels of which the last output is sure, and all those outside of the window that is worth it.

        One pixel of each cell is looked at, and stands for the others. What has stopped stays so. worth: as of
        `Bundle.worth`.
        """
        bundle, cells, before = self.bundle, self._cells, result.window
        size = GRID if cells is None else bundle.height // cells[0]
        stopped, doubt = unsettled(result.output, limits, self._weights, size, result.stopped, before)
        if before is not None:    # outside of it all has stopped
            inside, stopped = stopped, np.ones(cells, bool)
            before.crop(stopped)[:] = inside
        result.stopped = result.output.stopped = stopped
        if cells is not None:
            stage = result.output.exit.stage    # what comes next runs on the other side behind the last one onboard
            onboard = stage in self._onboard_stages[:-1] or bundle.split is None
            window = best_window(doubt - worth[not onboard])
            if window is None:
                stopped[:] = True
            else:
                self._narrow(result, window if before is None else window.from_inside(before))

    def _judge(self, rule, limits, result):
        """Score the last output and hold it against its threshold; by limits of classes its pixels stop before."""
        if limits is not None:
            self._stop_pixels(result, limits, self.bundle.worth(rule.name))
        result.score, result.settled = rule.judge([*result.before, *result.outputs], result.threshold)
        if limits is not None and result.score == 1:    # nothing is left to do
            result.settled = True

    def _limits(self, criterion, limits):
        """Limits of a criterion that stops pixels, float32 (classes,); None for one that stops whole frames."""
        if not CRITERIA[criterion].pixelwise:
            return None
        if limits is None and criterion not in self.bundle.limits:
            raise BundleError(f'bundle {self.bundle.name} has no class limits, which {criterion} needs: choose one of '
                              f"{', '.join(self.bundle.criteria)}, or export it with --statistics")
        return np.asarray(self.bundle.limits[criterion] if limits is None else limits, np.float32)

    def _run_side(self, stages, result, criterion, thresholds, limits, expert):
        """Run stages, and the exits behind each of them, until an exit settles or none is left (`Bundle.last_exit`)."""
        rule, judged, limits = CRITERIA[criterion], self.bundle.judged_exits, self._limits(criterion, limits)
        if thresholds is None and rule.score is None:
            thresholds = (0.0,) * len(judged)
        if thresholds is None or len(thresholds) != len(judged):
            raise ValueError(f'thresholds is {thresholds}: expected {len(judged)}, one for each of '
                             f"{', '.join(exit_.name for exit_ in judged) or 'no exits'}")
        threshold_of = {exit_.name: threshold for exit_, threshold in zip(judged, thresholds)}
        exits, last, ended = self.bundle.exits_for(expert, criterion), self.bundle.last_exit(expert), False
        began = time.perf_counter()
        for stage in stages:
            self._run(stage, result)
            for exit_ in exits:
                if exit_.stage == stage and not ended:
                    self._run_head(exit_, result)
                    result.threshold, result.score = None if exit_.name == last else threshold_of[exit_.name], None
                    if result.threshold is not None:
                        self._judge(rule, limits, result)
                    ended = result.settled or exit_.name == last
            if ended:
                break
        result.inference_ms += (time.perf_counter() - began) * 1e3

    def _place(self, image, expert):
        began = time.perf_counter()
        blur = self._detector.detect(image).blur if self.bundle.deblurs(expert) else None
        tensor, placement = preprocess(image, self.bundle, expert, blur)
        return Result(placement, tensors={'image': tensor},
                      preprocess_ms=(time.perf_counter() - began) * 1e3)

    def segment(self, image: np.ndarray, criterion: str, thresholds: Optional[Sequence[float]] = None,
                limits: Optional[Sequence[float]] = None, expert: str = '',
                strength: Optional[float] = None) -> Result:
        """Run the onboard stages on an image (uint8 (H, W, 3) RGB) until an exit settles or none is left.

        criterion: a name of `criteria.CRITERIA`. thresholds: one for each of the bundle's judged exits, those behind
        the split included; `always` and `never` need none. limits: one for each class, of a criterion that stops
        pixels; None: the bundle's. expert: whose heads stand in for the exits' own (one of `Bundle.experts`); '': none.
        All experts' graphs are loaded: each frame may name another. strength: of the distortion, 0 (the mildest, for
        which an expert's thresholds are stated) to 1 (`Bundle.per_strength`); None: not known, taken for the middle.
        """
        result = self._place(image, expert)
        by = self.bundle.per_strength(criterion, expert) * (0.5 if strength is None else strength)
        thresholds = CRITERIA[criterion].stricter(thresholds, by)
        self._run_side(self._onboard_stages, result, criterion, thresholds, limits, expert)
        return result

    def encode(self, result: Result) -> dict:
        """Features to forward, from a result whose onboard stages all ran: uint8 arrays by tensor name.

        What never ran is zero: cells that `onboard_map` leaves out.
        """
        cells = self._cells
        for name in self.bundle.graphs[self.bundle.split['encode']]['inputs']:
            if name not in result.tensors:
                maps, (covered, crop) = np.zeros(self.bundle.tensors[name]['shape'], np.float32), result.crops[name]
                covered.of(maps, cells)[:] = crop
                result.tensors[name] = maps
        result.window = None    # the encoder runs on whole maps
        self._run(self.bundle.split['encode'], result)
        return {name: result.tensors[name] for name in self.bundle.feature_tensors}

    def onboard_map(self, result: Result) -> OnboardMap:
        """What goes with the features of a result: its classes, and which cells to send.

        These are the cells in or near which (`send_margin`) the last exit is not sure, in the window that is worth
        running. All, where the bundle does not say when a pixel is settled and what the others' features are on
        average.
        """
        bundle, cells = self.bundle, self._cells
        classes = result.output.grid_classes
        rest = bundle.height // GRID - classes.shape[0], bundle.width // GRID - classes.shape[1]
        classes = np.pad(classes, [(0, rest[0]), (0, rest[1])], mode='edge')
        if not bundle.forwards_cells:
            return OnboardMap(classes)
        settled, doubt = unsettled(result.output, bundle.send_limits, self._weights, GRID, result.stopped)
        window, sent = best_window(means(doubt, cells) - bundle.send_worth), np.zeros(cells, bool)
        if window is not None:
            near = shrink(widen(~settled, bundle.send_margin), *cells)
            window.of(sent, cells)[:] = window.of(near, cells)
        return OnboardMap(classes, sent)

    @staticmethod
    def kept(result: Result, onboard: OnboardMap) -> Optional[np.ndarray]:
        """bool (height / 8, width / 8): pixels of a forwarded frame that keep the onboard label; None: none.

        Those that have stopped (ADP-C: they keep the earlier output), and those whose features are not sent.
        """
        unsent = onboard.unsent_pixels
        if result.stopped is None:
            return unsent
        stopped = grow(result.stopped, *onboard.classes.shape)
        return stopped if unsent is None else stopped | unsent

    def finish(self, features: dict, placement: Placement, criterion: str = 'never',
               thresholds: Optional[Sequence[float]] = None, onboard: Optional[OnboardMap] = None,
               limits: Optional[Sequence[float]] = None, expert: str = '') -> Result:
        """Finish the inference from features (as `encode` made them): stops at an exit behind the split that settles.

        criterion, thresholds, limits, expert: as of `segment`; the same serve both sides. onboard: what came with the
        features; with it, the first exit here is compared with the last one onboard, and cells that were not sent have
        the robot's classes in all outputs.
        """
        began, bundle = time.perf_counter(), self.bundle
        result = Result(placement)
        if onboard is not None:
            result.before = [classes_before(onboard, placement)]
            result.stopped = None if onboard.sent is None else ~onboard.sent
        if result.stopped is not None:
            features = {name: fill_means(tensor, bundle.class_means[name], onboard)
                        for name, tensor in features.items()}
            result.base = class_logits(onboard, len(bundle.classes)), 1.0
        result.tensors = dict(features)
        self._run(bundle.split['decode'], result)
        if result.stopped is not None:
            self._narrow(result, bounding_window(onboard.sent))
        result.inference_ms = (time.perf_counter() - began) * 1e3
        self._run_side(self._rest_stages, result, criterion, thresholds, limits, expert)
        return result

    def run_exit(self, image: np.ndarray, exit_name: str, expert: str = '') -> Result:
        """Run one exit alone, as a network of its own: the stages up to it and its head, no other head, no criterion.

        Behind the split the features pass encoder and decoder. expert: as of `segment`. Raises BundleError for a name
        that there is not.
        """
        *path, _ = self.bundle.path_to(exit_name)
        result = self._place(image, expert)
        began = time.perf_counter()
        for graph in path:
            self._run(graph, result)
        self._run_head(next(exit_ for exit_ in self.bundle.exits_for(expert) if exit_.name == exit_name), result)
        result.inference_ms = (time.perf_counter() - began) * 1e3
        return result
