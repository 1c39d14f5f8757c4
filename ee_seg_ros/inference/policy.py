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
"""Which mask is final: one per frame taken, in stamp order, refined if the refinement came by the deadline."""
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, Optional

ONBOARD, REFINED, LATE, REFUSED = 'onboard', 'refined', 'late', 'refused'


@dataclass
class _Entry:
    key: tuple
    frame: Any
    deadline: Optional[float]    # None: nothing to wait for
    source: str = ONBOARD
    refined: Any = None


class FinalQueue:
    """Frames between their onboard mask and their final mask.

    A key is (stamp in ns, frame_id). Time is steady seconds, given by the caller. Not thread-safe: the caller locks.
    warn: called with one line when a stamp is seen twice (once in the queue's life).
    """

    def __init__(self, warn: Callable[[str], object] = print):
        self._entries = deque()
        self._waiting = {}            # key -> entry, of frames whose refinement is still awaited
        self._newest = None
        self._warn = warn
        self._warned = False

    def __len__(self) -> int:
        return len(self._entries)

    def may_forward(self, key: tuple) -> bool:
        """False for a stamp that is in flight already: its refinement could not be told from the other's."""
        if all(entry.key != key for entry in self._entries):
            return True
        if not self._warned:
            self._warned = True
            self._warn(f'stamp {key[0]} ns of frame {key[1]!r} came twice while in flight: such frames are not '
                       'forwarded; give every image its own stamp')
        return False

    def restart_if_backwards(self, key: tuple) -> bool:
        """True if the stamp went back: a new stream, so all pending frames leave with their onboard masks."""
        backwards = self._newest is not None and key[0] < self._newest
        self._newest = key[0]
        if backwards:
            self.release()
        return backwards

    def release(self) -> None:
        """Stop waiting: all pending frames become ready with what they have."""
        for entry in self._entries:
            entry.deadline = None
        self._waiting.clear()

    def add(self, key: tuple, frame: Any, deadline: Optional[float]) -> None:
        """Queue a frame. deadline: until when to wait for its refinement; None if it was not forwarded."""
        entry = _Entry(key, frame, deadline)
        self._entries.append(entry)
        if deadline is not None:
            entry.source = LATE       # until something better comes
            self._waiting[key] = entry

    def refine(self, key: tuple, refined: Any) -> bool:
        """Hand in the refined mask of a frame. False if no frame waits for it: unknown, or too late."""
        return self._resolve(key, REFINED, refined)

    def refuse(self, key: tuple) -> bool:
        """The refinement of a frame came, but cannot be used. False if no frame waits for it."""
        return self._resolve(key, REFUSED, None)

    def _resolve(self, key, source, refined):
        entry = self._waiting.pop(key, None)
        if entry is None:
            return False
        entry.source, entry.refined, entry.deadline = source, refined, None
        return True

    def ready(self, now: float) -> list:
        """Frames that can leave, in order, as (frame, source, refined or None).

        source: onboard, refined, late or refused.
        """
        leaving = []
        while self._entries and (self._entries[0].deadline is None or self._entries[0].deadline <= now):
            entry = self._entries.popleft()
            self._waiting.pop(entry.key, None)
            leaving.append((entry.frame, entry.source, entry.refined))
        return leaving

    def next_deadline(self) -> Optional[float]:
        """When `ready` has to be asked again at the latest; None if nothing waits."""
        return self._entries[0].deadline if self._entries else None
