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
"""Hand-over from message callbacks to the one thread that infers."""
import threading
import time
from typing import Any, Callable, Optional


class Parking:
    """Holds the newest item per key for one worker; what is overwritten counts as dropped.

    Keys are served in turn: of those that have an item, the one that was served longest ago is next.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._items = {}        # key -> (item, how many it replaced since the worker last took one)
        self._served = {}       # key -> number of its last turn
        self._turn = 0
        self._closed = False
        self.dropped = 0

    def put(self, item: Any, key: str = '') -> bool:
        """Park an item in place of the one with the same key that was not taken yet; whether there was one."""
        with self._changed:
            replaced = self._items[key][1] + 1 if key in self._items else 0
            self.dropped += replaced > 0
            self._items[key] = (item, replaced)
            self._changed.notify()
            return replaced > 0

    def take(self, not_before: float = 0.0) -> Optional[tuple]:
        """Wait for an item, and until `not_before` (steady s): (key, item, number replaced by it); None when closed."""
        with self._changed:
            while not self._closed:
                wait = not_before - time.monotonic()
                if self._items and wait <= 0:
                    key = min(self._items, key=lambda each: self._served.get(each, -1))
                    self._turn += 1
                    self._served[key] = self._turn
                    return (key, *self._items.pop(key))
                self._changed.wait(wait if self._items and wait > 0 else None)
            return None

    def close(self) -> None:
        """Make `take` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Pace:
    """Holds a worker to a greatest rate; being late by up to one period is made up for."""

    def __init__(self):
        self._next = 0.0

    def next_start(self, rate: float) -> float:
        """The earliest time (steady s) of the next frame; rate in frames per second, 0: no limit."""
        return self._next if rate else 0.0

    def started(self, rate: float) -> None:
        """Count a frame that starts now."""
        if rate:
            self._next = max(self._next, time.monotonic() - 1 / rate) + 1 / rate


class Stint:
    """How long the worker takes for a frame: `with stint:` around each.

    count(name, number): is told of each frame as `worked` and `work_ms`, in ms.
    """

    def __init__(self, count: Callable):
        self._count, self._began = count, None

    def __enter__(self):
        self._began = time.monotonic()
        return self

    def __exit__(self, *_):
        milliseconds = self.running_ms
        self._began = None
        self._count('worked')
        self._count('work_ms', milliseconds)

    @property
    def running_ms(self) -> float:
        """How long the frame in progress has taken so far; 0 where there is none."""
        began = self._began
        return 0.0 if began is None else (time.monotonic() - began) * 1e3


def start_thread(name: str, target: Callable[[], None]) -> threading.Thread:
    """Start a daemon thread: a process that has to end must not wait for one that hangs."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
