# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The engine: runs a bundle stage by stage with onnxruntime, stops at an exit that settles, resumes elsewhere."""
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Callable, Optional, Sequence

import numpy as np
import onnxruntime

from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.frame import Placement, preprocess
from ee_seg_ros.inference.outputs import ExitOutput

PARTS = ('onboard', 'offboard', 'all')
CPU = 'CPUExecutionProvider'


@dataclass
class Result:
    """What `Engine.segment` found for one image.

    outputs: the exits that ran, in order. score and threshold: of the last one (score None where the criterion gives
    none). settled: whether that exit was good enough. macs: multiply-accumulates of all graphs that ran.
    preprocess_ms, inference_ms: wall time; inference includes heads and criteria.
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
        last = bundle.stages.index(bundle.split['after']) + 1
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
        onboard = list(self._onboard_stages) + [exit_.graph for exit_ in bundle.onboard_exits]
        onboard.append(bundle.split['encode'])
        offboard = [bundle.split['decode'], *self._rest_stages]
        offboard += [exit_.graph for exit_ in bundle.exits if not exit_.onboard]
        return {'onboard': onboard, 'offboard': offboard, 'all': onboard + offboard}[part]

    def _load(self, graph, providers):
        content = self.bundle.graph_bytes(graph)
        try:
            return onnxruntime.InferenceSession(content, self._options, providers=list(providers))
        except Exception as error:    # onnxruntime raises half a dozen unrelated types of its own
            raise BundleError(f'graph {graph} of {self.bundle.path} cannot be loaded by onnxruntime '
                              f'{onnxruntime.__version__}: {str(error)[:200]}') from None

    def _run(self, graph, tensors):
        description = self.bundle.graphs[graph]
        inputs = {name: tensors[name] for name in description['inputs']}
        outputs = self._sessions[graph].run(description['outputs'], inputs)
        tensors.update(zip(description['outputs'], outputs))
        return description['macs']

    def segment(self, image: np.ndarray, criterion: str, thresholds: Sequence[float]) -> Result:
        """Run the onboard stages on an image (uint8 (H, W, 3) RGB) until an exit settles or none is left.

        criterion: a name of `criteria.CRITERIA`. thresholds: one per onboard exit.
        """
        began = time.perf_counter()
        tensor, placement = preprocess(image, self.bundle)
        result = Result(placement, tensors={'image': tensor})
        result.preprocess_ms = (time.perf_counter() - began) * 1e3
        began = time.perf_counter()
        rule = CRITERIA[criterion]
        exits = list(zip(self.bundle.onboard_exits, thresholds))
        for stage in self._onboard_stages:
            result.macs += self._run(stage, result.tensors)
            while exits and exits[0][0].stage == stage and not result.settled:
                exit_, result.threshold = exits.pop(0)
                result.macs += self._run(exit_.graph, result.tensors)
                result.outputs.append(ExitOutput(self.bundle, exit_, result.tensors.pop(exit_.logits)[0], placement))
                result.score, result.settled = rule.judge(result.outputs, result.threshold)
            if result.settled:
                break
        result.inference_ms = (time.perf_counter() - began) * 1e3
        return result

    def encode(self, result: Result) -> dict:
        """Features to forward, from a result whose onboard stages all ran: uint8 arrays by tensor name."""
        result.macs += self._run(self.bundle.split['encode'], result.tensors)
        return {name: result.tensors[name] for name in self.bundle.feature_tensors}

    def finish(self, features: dict, placement: Placement) -> ExitOutput:
        """Finish the inference from features (as `encode` made them); returns the final output."""
        tensors = dict(features)
        self._run(self.bundle.split['decode'], tensors)
        for stage in self._rest_stages:
            self._run(stage, tensors)
        final = self.bundle.exits[-1]
        self._run(final.graph, tensors)
        return ExitOutput(self.bundle, final, tensors[final.logits][0], placement)

    @property
    def finish_macs(self) -> float:
        """Multiply-accumulates of `finish`."""
        bundle = self.bundle
        return sum(bundle.graphs[name]['macs'] for name in
                   (bundle.split['decode'], *self._rest_stages, bundle.exits[-1].graph))


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
