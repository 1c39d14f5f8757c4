# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Counters, and the messages of `/diagnostics` and `~/trace`."""
import threading
import time
from collections import Counter, deque

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
NO_EXPERT = 'none'    # of frames that the exits' own heads judged


def text_of(value) -> str:
    """A value as `~/trace` and `/diagnostics` show it: numbers short, booleans in lower case, None empty."""
    if value is None:
        return ''
    if isinstance(value, bool):
        return str(value).lower()
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def status_array(header_stamp, frame_id: str, level: bytes, name: str, message: str, values: dict,
                 hardware_id: str = '') -> DiagnosticArray:
    """A DiagnosticArray with one status."""
    array = DiagnosticArray()
    array.header.stamp, array.header.frame_id = header_stamp, frame_id
    array.status = [DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id,
                                     values=[KeyValue(key=key, value=text_of(value)) for key, value in values.items()])]
    return array


class Tally:
    """Counts by name since the start, and what came since the last report; any thread may count."""

    def __init__(self):
        self._lock = threading.Lock()
        self._total, self._before = Counter(), Counter()
        self._reported = time.monotonic()
        self._times = {}

    def count(self, name: str, number: int = 1) -> None:
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
        """(what was counted in all, what since the last call, seconds since then)."""
        with self._lock:
            now = time.monotonic()
            since, seconds = self._total - self._before, max(1e-3, now - self._reported)
            self._before, self._reported = self._total.copy(), now
            return self._before, since, seconds


def shares(total: dict, what: str) -> dict:
    """`WHAT_share.NAME` of all that was counted as `WHAT.NAME`: exits at which frames ended, say."""
    taken = {name: number for name, number in sorted(total.items()) if name.startswith(f'{what}.')}
    frames = sum(taken.values())
    return {name.replace('.', '_share.', 1): number / frames for name, number in taken.items()}


class Reporter:
    """Publishes one status at 1 Hz on `/diagnostics`.

    report: () -> (level, message, values), called from the executor.
    """

    def __init__(self, node, report, hardware_id: str):
        self._node, self._report, self._hardware_id = node, report, hardware_id
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._timer = node.create_timer(1.0, self.publish)

    def publish(self) -> None:
        """Publish now."""
        level, message, values = self._report()
        self._publisher.publish(status_array(
            self._node.get_clock().now().to_msg(), '', level, self._node.get_fully_qualified_name()[1:], message,
            values, self._hardware_id))

    def close(self) -> None:
        """Stop."""
        self._node.destroy_timer(self._timer)
        self._node.destroy_publisher(self._publisher)
