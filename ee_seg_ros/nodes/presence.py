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

from ee_seg_ros.nodes.qos import LATCHED_BY_SEVERAL, OFFBOARD_INFO

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:    # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks


def announce(node, topic: str, values: dict):
    """Publish (latched) that this node serves; it is known to be there as long as the returned publisher lives."""
    publisher = node.create_publisher(DiagnosticStatus, topic, OFFBOARD_INFO)
    publisher.publish(DiagnosticStatus(
        level=DiagnosticStatus.OK, name=node.get_fully_qualified_name(), hardware_id=values['id'], message='serving',
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()]))
    return publisher


class Presence:
    """Follows `offboard_info`: `servers` holds what each offboard node that is alive told of itself, the newest last.

    Alive is what DDS says by the liveliness lease of a second: a node that was killed cannot say good-bye. The message
    says who it is; it comes once, so it is kept over a gap in the link.
    on_change: called without arguments after every change, from the executor.
    """

    def __init__(self, node, topic: str, on_change: Callable[[], None] = lambda: None):
        self._node, self._topic, self._on_change = node, topic, on_change
        self._alive = 0
        # Two subscriptions, because Fast DDS counts those that are alive right only in the first one of a process.
        self._lease = node.create_subscription(
            DiagnosticStatus, topic, lambda message: None, OFFBOARD_INFO,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness))
        self._ask()

    def _ask(self):
        """Subscribe to what the servers have to say, which is latched."""
        self._told = {}
        self._infos = self._node.create_subscription(DiagnosticStatus, self._topic, self._on_info, LATCHED_BY_SEVERAL)

    @property
    def servers(self) -> list:
        """What each offboard node told of itself, as dicts of strings; empty while there is none."""
        return list(self._told.values())[-self._alive:] if self._alive else []

    def close(self) -> None:
        """Stop following."""
        self._alive = 0
        for subscription in (self._lease, self._infos):
            self._node.destroy_subscription(subscription)

    def _on_info(self, message):
        self._told.pop(message.hardware_id, None)
        self._told[message.hardware_id] = {pair.key: pair.value for pair in message.values}
        self._on_change()

    def _on_liveliness(self, event):
        before, self._alive = self._alive, event.alive_count
        if before > 1 and self._alive < before:
            # DDS does not say which of them left: those that remain say again who they are.
            self._node.destroy_subscription(self._infos)
            self._ask()
        self._on_change()
