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
"""Who serves: `offboard_info` as the offboard node writes it, and as the others read it."""
import time
from dataclasses import dataclass
from typing import Callable

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType

from ee_seg_ros.nodes.qos import OFFBOARD_INFO, OFFBOARD_INFOS

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:    # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

AGAIN_S = 0.5      # until an offboard node says again that it serves
SILENCE_S = 1.2    # after which one that did so is taken for gone: it was not heard twice
LOOK_S = 0.2       # until the next look for those


def announce(node, topic: str, values: dict) -> Callable[[], None]:
    """Publish that this node serves, now (latched) and twice a second; returns what ends that.

    Again, because the latched message alone may come seconds late: a reader has to ask for it, and where a process was
    killed just before, Fast DDS asks through the shared memory of that one until it is given up: up to 4 s, measured.
    What is published while the reader is there reaches it without being asked for.
    """
    publisher = node.create_publisher(DiagnosticStatus, topic, OFFBOARD_INFO)
    message = DiagnosticStatus(
        level=DiagnosticStatus.OK, name=node.get_fully_qualified_name(), hardware_id=values['id'], message='serving',
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])
    publisher.publish(message)
    steady = Clock(clock_type=ClockType.STEADY_TIME)    # goes on where simulated time stands still
    timer = node.create_timer(AGAIN_S, lambda: publisher.publish(message), clock=steady)

    def end():
        node.destroy_timer(timer)
        node.destroy_publisher(publisher)
    return end


@dataclass
class _Heard:
    """What an offboard node told of itself, when (steady clock), whether it said so again, and is silent since."""

    told: dict
    at: float
    again: bool
    silent: bool = False


class Presence:
    """Follows `offboard_info`: `servers` holds what each offboard node that is alive told of itself.

    Ours speak twice a second: each is there as long as it is heard. One that spoke only once, for the message is
    latched, is there while DDS counts more of them alive, by the liveliness lease of a second, than are heard; DDS does
    not say which of them left, so those heard last are taken for those that stay. That count alone would not do: Fast
    DDS gets it right only in the first subscription of a topic in a process, and nodes are configured anew. It tells
    sooner than silence, though, that the last one left.
    on_change: called without arguments after every message and every change, from the executor.
    """

    def __init__(self, node, topic: str, on_change: Callable[[], None] = lambda: None):
        self._node, self._on_change = node, on_change
        self._alive = 0
        self._heard: dict[str, _Heard] = {}    # by id, the one heard last at the end
        self._looked = time.monotonic()
        self._subscription = node.create_subscription(
            DiagnosticStatus, topic, self._on_info, OFFBOARD_INFOS,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness))
        self._timer = node.create_timer(LOOK_S, self._on_look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def servers(self) -> list:
        """What each offboard node told of itself, as dicts of strings, in the order of their ids; empty without any."""
        heard = [name for name, each in self._heard.items() if not each.silent]
        silent = [name for name, each in self._heard.items() if each.silent]
        counted = silent[len(silent) - min(len(silent), max(0, self._alive - len(heard))):]
        return [self._heard[name].told for name in sorted(heard + counted)]

    def close(self) -> None:
        """Stop following."""
        self._heard.clear()
        self._node.destroy_timer(self._timer)
        self._node.destroy_subscription(self._subscription)

    def _on_info(self, message):
        again = self._heard.pop(message.hardware_id, None) is not None
        told = {pair.key: pair.value for pair in message.values}
        self._heard[message.hardware_id] = _Heard(told, time.monotonic(), again)
        self._on_change()

    def _on_liveliness(self, event):
        self._alive = event.alive_count
        if not self._alive:
            self._heard.clear()    # else the next one would be taken for the last one until it speaks
        self._on_change()

    def _on_look(self):
        now, last = time.monotonic(), self._looked
        self._looked = now
        if now - last > 2 * LOOK_S:    # this process stood still: what was said meanwhile is yet to be read
            return
        fell_silent = [name for name, each in self._heard.items() if not each.silent and now - each.at > SILENCE_S]
        for name in fell_silent:
            if self._heard[name].again:
                del self._heard[name]
            else:
                self._heard[name].silent = True
        if fell_silent:
            self._on_change()
