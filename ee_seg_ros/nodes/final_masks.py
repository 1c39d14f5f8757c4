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
"""Between the mask and the final mask: frames wait for their refinement, one thread lets them leave in order."""
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import numpy as np
from sensor_msgs.msg import Image

from ee_seg_ros.inference.policy import FinalQueue
from ee_seg_ros.nodes.conversions import key_of
from ee_seg_ros.nodes.worker import start_thread


@dataclass
class Frame:
    """A frame taken: what its final mask and its trace need.

    arrived: steady seconds at the image callback. mask: the onboard mask as published. output: the ExitOutput that the
    mask was made from, None where segmentation failed. trace: the values of `~/trace` known so far. kept: of a
    forwarded frame, the pixels that keep the onboard label (see `pixels.refine`), None: none; placement: of its image.
    """

    header: Any
    arrived: float
    mask: Optional[Image] = None
    output: Any = None
    trace: dict = field(default_factory=dict)
    kept: Optional[np.ndarray] = None
    placement: Any = None

    @property
    def key(self) -> tuple:
        """(stamp in ns, frame_id)."""
        return key_of(self.header)


@dataclass
class Refined:
    """A refinement: mask uint8 (H, W); when it came (steady s); ExitOutput where it was made on this machine."""

    mask: np.ndarray
    arrived: float
    output: Any = None


class FinalMasks:
    """One final mask per frame taken, in stamp order, by its deadline: FinalQueue with a lock and a thread.

    publish(frame, source, refined) is called from that thread only, which makes the order of the topic the order of
    the queue; it must not raise.
    """

    def __init__(self, publish: Callable, warn: Callable[[str], object]):
        self._publish = publish
        self._queue = FinalQueue(warn)
        self._changed = threading.Condition()
        self._awaited = {}          # key -> frame that waits for its refinement
        self._closed = False
        self._thread = start_thread('final masks', self._run)

    def begin(self, key: tuple) -> None:
        """A frame was taken. If its stamp goes back it begins a new stream, and all that waits leaves as it is."""
        with self._changed:
            if self._queue.restart_if_backwards(key):
                self._awaited.clear()
                self._changed.notify()

    def may_forward(self, key: tuple) -> bool:
        """Whether a refinement of this key could be told from that of another frame in flight."""
        with self._changed:
            return self._queue.may_forward(key)

    def add(self, frame: Frame, deadline: Optional[float] = None) -> None:
        """Queue a frame whose mask was published; deadline in steady seconds if a refinement may come, else None."""
        with self._changed:
            self._queue.add(frame.key, frame, deadline)
            if deadline is not None:
                self._awaited[frame.key] = frame
            self._changed.notify()

    def awaited(self, key: tuple) -> Optional[Frame]:
        """The frame of this key, if it waits for a refinement."""
        with self._changed:
            return self._awaited.get(key)

    def refine(self, key: tuple, refined: Refined) -> bool:
        """Hand in a refinement. False if it comes too late."""
        with self._changed:
            self._awaited.pop(key, None)
            self._changed.notify()
            return self._queue.refine(key, refined)

    def refuse(self, key: tuple) -> None:
        """No usable refinement will come for this frame."""
        with self._changed:
            self._awaited.pop(key, None)
            self._queue.refuse(key)
            self._changed.notify()

    def close(self) -> None:
        """Let everything leave that waits, then end the thread."""
        with self._changed:
            self._queue.release()
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self):
        while True:
            with self._changed:
                leaving = self._queue.ready(time.monotonic())
                if not leaving:
                    if self._closed:
                        return
                    deadline = self._queue.next_deadline()
                    self._changed.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
                    continue
                for frame, _, _ in leaving:
                    if self._awaited.get(frame.key) is frame:
                        del self._awaited[frame.key]
            for frame, source, refined in leaving:
                self._publish(frame, source, refined)
