# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The engine: runs a bundle stage by stage with onnxruntime, stops at an exit that settles, resumes elsewhere."""
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Callable, Optional, Sequence

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.frame import Placement, preprocess
from ee_seg_ros.inference.outputs import ExitOutput

PARTS = ('onboard', 'offboard', 'all')
CPU = 'CPUExecutionProvider'


@dataclass
class Result:
    """What one side of a bundle found for one image: the robot's (`segment`) or the server's (`finish`).

    outputs: the exits that ran on this side, in order. score and threshold: of the last one (score None where the
    criterion gives none; both None at the last exit of the bundle, which is not judged). settled: whether that exit was
    good enough. macs: multiply-accumulates of all graphs that ran on this side. tensors: what they put out, as
    onnxruntime's own values. preprocess_ms, inference_ms: wall time; inference includes heads and criteria.
    """

    placement: Placement
    outputs: list = field(default_factory=list)
    tensors: dict = field(default_factory=dict)
    score: Optional[float] = None
    threshold: Optional[float] = None
    settled: bool = False
    macs: float = 0.0
    preprocess_ms: float = 0.0
    inference_ms: float = 0.0

    @property
    def output(self) -> ExitOutput:
        """The exit to publish: the last one that ran."""
        return self.outputs[-1]

    @property
    def exit_name(self) -> str:
        """Name of that exit."""
        return self.output.exit.name


class Engine:
    """Runs one bundle.

    providers: onnxruntime's execution providers in order of preference; what is not there is left out with one call of
    `warn`, and the CPU is always the last resort. threads: per graph. part: which graphs are loaded: 'onboard' (stages
    up to the split, their exits, the feature encoder), 'offboard' (the rest) or 'all'.
    `providers` afterwards holds what is really in use. Raises BundleError for a bundle that cannot be loaded.
    """

    def __init__(self, bundle: Bundle, providers: Sequence[str] = (CPU,), threads: int = 2, part: str = 'all',
                 warn: Callable[[str], None] = print):
        if part not in PARTS:
            raise ValueError(f'part {part!r} is not one of {", ".join(PARTS)}')
        self.bundle = bundle
        if bundle.split is None and part == 'offboard':
            raise BundleError(f'bundle {bundle.name} has no split: all of it runs onboard, and nothing is left for an '
                              'offboard node; give a bundle with a split, or run the onboard node alone')
        last = bundle.stages.index(bundle.split['after']) + 1 if bundle.split else len(bundle.stages)
        self._onboard_stages, self._rest_stages = bundle.stages[:last], bundle.stages[last:]
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        # Idle pools of several sessions spin against each other: 90 ms a frame instead of 21 on two cores.
        self._options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        _share_arena()
        self._options.add_session_config_entry('session.use_env_allocators', '1')
        self._options.log_severity_level = 3
        asked = _available(providers, warn)
        self._sessions = {name: self._load(name, asked) for name in self._graphs_of(part)}
        self.providers = tuple(next(iter(self._sessions.values())).get_providers())
        fallen = [name for name in asked if name not in self.providers]
        if fallen:
            warn(f"{', '.join(fallen)} could not be started: running on {', '.join(self.providers)}")

    def _graphs_of(self, part):
        bundle = self.bundle
        onboard = [*self._onboard_stages, *(exit_.graph for exit_ in bundle.onboard_exits)]
        offboard = [*self._rest_stages, *(exit_.graph for exit_ in bundle.offboard_exits)]
        if bundle.split is not None:
            onboard.append(bundle.split['encode'])
            offboard.append(bundle.split['decode'])
        return {'onboard': onboard, 'offboard': offboard, 'all': onboard + offboard}[part]

    def _load(self, graph, providers):
        content = self.bundle.graph_bytes(graph)
        try:
            return onnxruntime.InferenceSession(content, self._options, providers=list(providers))
        except Exception as error:    # onnxruntime raises half a dozen unrelated types of its own
            raise BundleError(f'graph {graph} of {self.bundle.path} cannot be loaded by onnxruntime '
                              f'{onnxruntime.__version__}: {str(error)[:200]}') from None

    def _run(self, graph, result):
        """Run a graph on what is in `result`. Its outputs stay with onnxruntime: most are only read by other graphs."""
        description = self.bundle.graphs[graph]
        outputs = self._sessions[graph].run_with_ort_values(
            description['outputs'], {name: result.tensors[name] for name in description['inputs']})
        result.tensors.update(zip(description['outputs'], outputs))
        result.macs += description['macs']

    def _run_head(self, exit_, result):
        self._run(exit_.graph, result)
        logits = result.tensors.pop(exit_.logits).numpy()[0]
        result.outputs.append(ExitOutput(self.bundle, exit_, logits, result.placement))

    def _run_side(self, stages, exits, result, criterion, thresholds):
        """Run stages, and the exits behind each of them, until an exit settles or none is left."""
        rule, judged = CRITERIA[criterion], self.bundle.judged_exits
        if thresholds is None and rule.score is None:
            thresholds = (0.0,) * len(judged)
        if thresholds is None or len(thresholds) != len(judged):
            raise ValueError(f'thresholds is {thresholds}: expected {len(judged)}, one for each of '
                             f"{', '.join(exit_.name for exit_ in judged) or 'no exits'}")
        threshold_of = {exit_.name: threshold for exit_, threshold in zip(judged, thresholds)}
        began = time.perf_counter()
        for stage in stages:
            self._run(stage, result)
            for exit_ in exits:
                if exit_.stage == stage and not result.settled:
                    self._run_head(exit_, result)
                    result.threshold = threshold_of.get(exit_.name)
                    result.score, result.settled = (None, False) if result.threshold is None else rule.judge(
                        result.outputs, result.threshold)
            if result.settled:
                break
        result.inference_ms += (time.perf_counter() - began) * 1e3

    def _place(self, image):
        began = time.perf_counter()
        tensor, placement = preprocess(image, self.bundle)
        return Result(placement, tensors={'image': OrtValue.ortvalue_from_numpy(tensor)},
                      preprocess_ms=(time.perf_counter() - began) * 1e3)

    def segment(self, image: np.ndarray, criterion: str, thresholds: Optional[Sequence[float]] = None) -> Result:
        """Run the onboard stages on an image (uint8 (H, W, 3) RGB) until an exit settles or none is left.

        criterion: a name of `criteria.CRITERIA`. thresholds: one for each of the bundle's judged exits, those behind
        the split included; `always` and `never` need none.
        """
        result = self._place(image)
        self._run_side(self._onboard_stages, self.bundle.onboard_exits, result, criterion, thresholds)
        return result

    def encode(self, result: Result) -> dict:
        """Features to forward, from a result whose onboard stages all ran: uint8 arrays by tensor name."""
        self._run(self.bundle.split['encode'], result)
        return {name: result.tensors[name].numpy() for name in self.bundle.feature_tensors}

    def finish(self, features: dict, placement: Placement, criterion: str = 'never',
               thresholds: Optional[Sequence[float]] = None) -> Result:
        """Finish the inference from features (as `encode` made them): stops at an exit behind the split that settles.

        criterion, thresholds: as of `segment`; the same thresholds serve both sides.
        """
        began = time.perf_counter()
        result = Result(placement, tensors={
            name: OrtValue.ortvalue_from_numpy(tensor) for name, tensor in features.items()})
        self._run(self.bundle.split['decode'], result)
        result.inference_ms = (time.perf_counter() - began) * 1e3
        self._run_side(self._rest_stages, self.bundle.offboard_exits, result, criterion, thresholds)
        return result

    def run_exit(self, image: np.ndarray, exit_name: str) -> Result:
        """Run one exit alone, as a network of its own: the stages up to it and its head, no other head, no criterion.

        Behind the split the features pass encoder and decoder. Raises BundleError for a name that there is not.
        """
        *path, _ = self.bundle.path_to(exit_name)
        result = self._place(image)
        began = time.perf_counter()
        for graph in path:
            self._run(graph, result)
        self._run_head(next(exit_ for exit_ in self.bundle.exits if exit_.name == exit_name), result)
        result.inference_ms = (time.perf_counter() - began) * 1e3
        return result


def _available(providers, warn):
    """The asked-for providers that this onnxruntime has, and the CPU behind them; one warning for those it lacks."""
    have = onnxruntime.get_available_providers()
    missing = [name for name in providers if name not in have]
    if missing:
        warn(f"provider {', '.join(missing)} is not in this onnxruntime (it has {', '.join(have)}): "
             'falling back to the next, at last to the CPU; on a GPU machine install onnxruntime-gpu')
    kept = [name for name in providers if name in have]
    return kept if CPU in kept else kept + [CPU]


@lru_cache(maxsize=None)
def _share_arena():
    """One memory arena for all graphs of this process: they run in turn, so that each can use what the last one left.

    With an arena each, all graphs of a bundle took 54 MB more, at the same speed; with none, they were slower.
    """
    memory = onnxruntime.OrtMemoryInfo('Cpu', onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                                       onnxruntime.OrtMemType.DEFAULT)
    try:
        onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(0, 0, -1, -1))
    except RuntimeError:
        pass    # somebody else in this process has registered one already: that one is shared
