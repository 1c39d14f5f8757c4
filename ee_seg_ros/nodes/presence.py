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

from ee_seg_ros.nodes.qos import OFFBOARD_INFO

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
    """Follows `offboard_info`: `info` holds its values while an offboard node is alive, and is empty otherwise.

    Alive is what DDS says by the liveliness lease of a second: a node that was killed cannot say good-bye. The message
    says who it is; it comes once, so it is kept over a gap in the link.
    on_change: called without arguments after every change, from the executor.
    """

    def __init__(self, node, topic: str, on_change: Callable[[], None] = lambda: None):
        self._node, self._on_change = node, on_change
        self._alive, self._told = 0, {}
        self._subscription = node.create_subscription(
            DiagnosticStatus, topic, self._on_info, OFFBOARD_INFO,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness))

    @property
    def info(self) -> dict:
        """What the offboard node told of itself last; empty while there is none."""
        return self._told if self._alive else {}

    def close(self) -> None:
        """Stop following."""
        self._alive = 0
        self._node.destroy_subscription(self._subscription)

    def _on_info(self, message):
        self._told = {pair.key: pair.value for pair in message.values}
        self._on_change()

    def _on_liveliness(self, event):
        self._alive = event.alive_count
        self._on_change()
