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
"""QoS overrides of one topic stay with that topic."""
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')

from sensor_msgs.msg import Image  # noqa: E402

from ee_seg_ros.nodes.qos import MASK, overridable  # noqa: E402


def test_an_override_changes_one_topic_only():
    context = rclpy.Context()
    rclpy.init(context=context, args=['--ros-args', '-p', 'qos_overrides./first.publisher.depth:=42'])
    node = rclpy.create_node('overrides', context=context)
    first, second = (node.create_publisher(Image, topic, **overridable(MASK)) for topic in ('first', 'second'))
    assert (first.qos_profile.depth, second.qos_profile.depth, MASK.depth) == (42, 5, 5)
    node.destroy_node()
    rclpy.shutdown(context=context)
