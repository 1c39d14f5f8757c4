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
"""The graphs of a bundle in onnxruntime; those behind the first exits run on maps of any size."""
from functools import lru_cache
from typing import Callable, Iterable, Sequence

import onnxruntime

from ee_seg_ros.inference.bundle import Bundle, BundleError

CPU = 'CPUExecutionProvider'
# Between two operators a thread waits so long before it sleeps: less than what waking it takes. onnxruntime can be told
# so from this version on (github.com/microsoft/onnxruntime/pull/27916); before, it waits for ages, or not at all.
SPIN_US, SPINS_SINCE = 20, (1, 27)
LIGHT_MACS = 50e6    # of a graph; below, waking a second thread for each operator takes longer than what it saves


class Graphs:
    """Some graphs of a bundle, loaded.

    names: which. providers: onnxruntime's execution providers in order of preference; what is not there is left out
    with one call of `warn`, and the CPU is always the last resort; afterwards `providers` holds what is really in use.
    threads: per graph, where it has work for more than one. Raises BundleError for a graph that cannot be loaded.
    """

    def __init__(self, bundle: Bundle, names: Iterable, providers: Sequence[str], threads: int,
                 warn: Callable[[str], object]):
        self._bundle, self._threads = bundle, threads
        _share_arena()
        asked = _available(providers, warn)
        self._sessions = {name: self._load(name, asked) for name in names}
        self.providers = tuple(next(iter(self._sessions.values())).get_providers())
        fallen = [name for name in asked if name not in self.providers]
        if fallen:
            warn(f"{', '.join(fallen)} could not be started: running on {', '.join(self.providers)}")

    @property
    def names(self) -> tuple:
        """Names of the graphs that are loaded."""
        return tuple(self._sessions)

    def run(self, graph: str, maps: dict) -> dict:
        """Run a graph on maps, or on the same part of all its maps: arrays (1, C, h, w) by name in and out.

        onnxruntime's own values would save copies, and yet are slower: 50 us a call, more than the copies take.
        """
        described = self._bundle.graphs[graph]
        return dict(zip(described['outputs'], self._sessions[graph].run(
            described['outputs'], {name: maps[name] for name in described['inputs']})))

    def _load(self, graph, providers):
        content = self._bundle.graph_bytes(graph)
        try:
            return onnxruntime.InferenceSession(content, self._options(graph), providers=list(providers))
        except Exception as error:    # onnxruntime raises half a dozen unrelated types of its own
            raise BundleError(f'graph {graph} of {self._bundle.path} cannot be loaded by onnxruntime '
                              f'{onnxruntime.__version__}: {str(error)[:200]}') from None

    def _options(self, graph):
        options, spins = onnxruntime.SessionOptions(), spins_briefly(onnxruntime.__version__)
        light = not spins and self._bundle.graphs[graph]['macs'] < LIGHT_MACS
        options.intra_op_num_threads = 1 if light else self._threads
        options.inter_op_num_threads = 1
        # Idle pools of several sessions that spin as long as they like do so against each other: 90 ms a frame instead
        # of 21 on two cores. Spinning within runs only (force_spinning_stop) costs 50 % where something else keeps a
        # core busy; for 20 us only, nothing that could be told from chance, while it saves a tenth where all is quiet.
        options.add_session_config_entry('session.intra_op.allow_spinning', '1' if spins else '0')
        if spins:
            options.add_session_config_entry('session.intra_op.spin_duration_us', str(SPIN_US))
        options.add_session_config_entry('session.use_env_allocators', '1')
        options.log_severity_level = 3
        return options


def spins_briefly(version: str) -> bool:
    """Whether an onnxruntime of that version ('1.27.0', '1.28.0.dev20260801') can be told for how long to spin."""
    return tuple(map(int, version.split('.')[:2])) >= SPINS_SINCE


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
