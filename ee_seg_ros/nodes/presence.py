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
from typing import Callable

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType

from ee_seg_ros.nodes.qos import OFFBOARD_INFO, OFFBOARD_INFOS

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:    # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

AGAIN_S = 0.5    # until an offboard node says again that it serves


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


class Presence:
    """Follows `offboard_info`: `servers` holds what each offboard node that is alive told of itself.

    How many are alive is what DDS says by the liveliness lease of a second: a node that was killed cannot say good-bye.
    DDS does not say which of them left: those that remain go on saying who they are, so they are the ones heard last.
    One in a process: Fast DDS counts those that are alive right only in the first subscription of a topic.
    on_change: called without arguments after every message and every change, from the executor.
    """

    def __init__(self, node, topic: str, on_change: Callable[[], None] = lambda: None):
        self._node, self._on_change = node, on_change
        self._alive = 0
        self._told: dict = {}    # by id, the one heard last at the end
        self._subscription = node.create_subscription(
            DiagnosticStatus, topic, self._on_info, OFFBOARD_INFOS,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness))

    @property
    def servers(self) -> list:
        """What each offboard node told of itself, as dicts of strings, in the order of their ids; empty without any."""
        alive = list(self._told)[-self._alive:] if self._alive else []
        return [self._told[name] for name in sorted(alive)]

    def close(self) -> None:
        """Stop following."""
        self._alive = 0
        self._node.destroy_subscription(self._subscription)

    def _on_info(self, message):
        self._told.pop(message.hardware_id, None)
        self._told[message.hardware_id] = {pair.key: pair.value for pair in message.values}
        self._on_change()

    def _on_liveliness(self, event):
        self._alive = event.alive_count
        if not self._alive:
            self._told.clear()    # else the next one would be taken for the last one until it speaks
        self._on_change()
