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
"""Counters, and the messages of `/diagnostics` and `~/trace`."""
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Callable, Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType

try:
    from diagnostic_updater import Updater
except ImportError:    # not among pip's wheels
    Updater = None

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
PERIOD_S = 1.0    # of /diagnostics
LOOK_S = 0.2      # a change is published at once, and seen after so long at most
WINDOW_S = 1.0    # what is said of the recent past looks back so far
NO_EXPERT = 'none'    # of frames that the exits' own heads judged


def text_of(value) -> str:
    """A value as `~/trace` and `/diagnostics` show it: numbers short, booleans in lower case, None empty."""
    if value is None:
        return ''
    if isinstance(value, bool):
        return str(value).lower()
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def key_values(values: dict) -> list:
    """The values of a DiagnosticStatus."""
    return [KeyValue(key=key, value=text_of(value)) for key, value in values.items()]


def status_array(header_stamp, frame_id: str, level: bytes, name: str, message: str, values: dict) -> DiagnosticArray:
    """A DiagnosticArray with one status."""
    array = DiagnosticArray()
    array.header.stamp, array.header.frame_id = header_stamp, frame_id
    array.status = [DiagnosticStatus(level=level, name=name, message=message, values=key_values(values))]
    return array


class Tally:
    """Counts by name since the start, and what came in the last second; any thread may count."""

    def __init__(self):
        self._lock = threading.Lock()
        self._total = Counter()
        self._before = deque([(time.monotonic(), Counter())])    # what had been counted when, a second back
        self._times = {}

    def count(self, name: str, number: float = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._total[name] += number

    def time(self, name: str, milliseconds: float) -> None:
        """Remember a duration; the last 50 make the median."""
        with self._lock:
            self._times.setdefault(name, deque(maxlen=50)).append(milliseconds)

    def median_ms(self, name: str):
        """Median of the last durations of that name, or None."""
        with self._lock:
            times = sorted(self._times.get(name, ()))
        return times[len(times) // 2] if times else None

    def report(self) -> tuple:
        """(what was counted in all, what since the last call but one that is a second old, seconds since then)."""
        with self._lock:
            now, total = time.monotonic(), self._total.copy()
            self._before.append((now, total))
            while len(self._before) > 2 and now - self._before[1][0] >= WINDOW_S:
                self._before.popleft()
            then, counted = self._before[0]
            return total, total - counted, max(1e-3, now - then)


def shares(total: dict, what: str) -> dict:
    """`WHAT_share.NAME` of all that was counted as `WHAT.NAME`: exits at which frames ended, say."""
    taken = {name: number for name, number in sorted(total.items()) if name.startswith(f'{what}.')}
    frames = sum(taken.values())
    return {name.replace('.', '_share.', 1): number / frames for name, number in taken.items()}


@dataclass(frozen=True)
class Finding:
    """What is to be said of one part of a node. message: without figures that change all the time; those are values."""

    level: bytes
    message: str
    values: dict = field(default_factory=dict)


def whole(findings: Sequence[Finding], fine: str) -> Finding:
    """What is to be said of the whole node: the worst level, what is wrong (the worst first), and all values."""
    wrong = sorted((each for each in findings if each.level != OK), key=lambda each: each.level, reverse=True)
    values = {key: value for each in findings for key, value in each.values.items()}
    return Finding(wrong[0].level if wrong else OK, '; '.join(each.message for each in wrong) or fine, values)


class _ByHand:
    """What is used here of diagnostic_updater's Updater, where that is not installed."""

    def __init__(self, node, period: float):
        self.publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 1)
        node.create_timer(period, self.update, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._tasks, self._hardware_id = [], ''

    def setHardwareID(self, hardware_id: str) -> None:    # noqa: N802 - the name is diagnostic_updater's
        """Say of what the node is an instance."""
        self._hardware_id = hardware_id

    def add(self, name: str, fill: Callable) -> None:
        """Add a task: fill(status) sets level, message and values, and returns the status."""
        self._tasks.append((name, fill))

    def publish(self, statuses) -> None:
        """Publish these statuses; see `Diagnostics`."""
        raise NotImplementedError

    def update(self) -> None:
        """Publish now."""
        self.publish([fill(DiagnosticStatus(name=name, hardware_id=self._hardware_id)) for name, fill in self._tasks])

    force_update = update


_Base: Any = Updater or _ByHand


class Diagnostics(_Base):
    """The statuses of a node on `/diagnostics`: NODE for the whole and `NODE: PART` for each part.

    They are published at 1 Hz, and at once when one of them changes.

    examine: () -> {part: Finding}, the whole node under the name ''; called from the executor.
    """

    def __init__(self, node, parts: Sequence[str], examine: Callable):
        self._examine = examine
        self._said: dict | None = None
        self._name, self._clock = node.get_fully_qualified_name()[1:], node.get_clock()
        self._findings = examine()
        super().__init__(node, PERIOD_S)
        self.setHardwareID('none')    # else diagnostic_updater complains
        for part in ('', *parts):
            self.add(part, lambda status, part=part: self._fill(status, part))
        # The steady clock goes on where simulated time stands still.
        node.create_timer(LOOK_S, self.look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def look(self) -> None:
        """Examine the node; publish if anything but figures has changed."""
        self._findings = self._examine()
        says = {part: (finding.level, finding.message) for part, finding in self._findings.items()}
        if says != self._said:
            self._said = says
            self.force_update()

    def _fill(self, status, part):
        finding = self._findings[part]
        status.level, status.message, status.values = finding.level, finding.message, key_values(finding.values)
        return status

    def publish(self, statuses) -> None:
        """Publish statuses that are named by their part.

        diagnostic_updater's own would leave out the namespace, by which robots are told apart.
        """
        array = DiagnosticArray()
        array.header.stamp = self._clock.now().to_msg()
        for status in statuses if isinstance(statuses, list) else [statuses]:
            array.status.append(DiagnosticStatus(
                level=status.level, name=f'{self._name}: {status.name}' if status.name else self._name,
                message=status.message, hardware_id=status.hardware_id, values=status.values))
        self.publisher.publish(array)
