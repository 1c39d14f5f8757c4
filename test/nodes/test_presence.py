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
"""Who is alive and what they told, from messages and liveliness in any order."""
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue  # noqa: E402

from ee_seg_ros.nodes.presence import AGAIN_S, Presence, announce  # noqa: E402


class Node:
    """Stands in for a node: keeps what it is asked to make."""

    def __init__(self):
        self.said, self.timers = [], {}

    def get_fully_qualified_name(self):
        return '/server'

    def create_publisher(self, type_, topic, qos):
        return SimpleNamespace(publish=self.said.append)

    def create_timer(self, period, callback, clock):
        self.timers[period] = callback
        return period

    def destroy_timer(self, period):
        del self.timers[period]

    def destroy_publisher(self, publisher):
        self.said = None

    def create_subscription(self, type_, topic, callback, qos, event_callbacks):
        self.hear, self.count = callback, event_callbacks.liveliness


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def presence(node):
    return Presence(node, 'offboard_info')


def say(node, *names):
    for name in names:
        node.hear(DiagnosticStatus(hardware_id=name, values=[KeyValue(key='bundle', value=name)]))


def alive(node, count):
    node.count(SimpleNamespace(alive_count=count))


def bundles(presence):
    return [server['bundle'] for server in presence.servers]


def test_a_server_says_again_that_it_serves_until_it_ends(node):
    end = announce(node, 'offboard_info', {'id': 'a', 'bundle': 'street'})
    node.timers[AGAIN_S]()
    assert len(node.said) == 2 and node.said[0] == node.said[1]
    end()
    assert not node.timers and node.said is None


def test_one_is_there_when_it_is_alive_and_has_spoken(node, presence):
    say(node, 'a')
    assert bundles(presence) == []
    alive(node, 1)
    assert bundles(presence) == ['a']


def test_what_one_told_ends_with_it(node, presence):
    alive(node, 1)
    say(node, 'a')
    alive(node, 0)
    alive(node, 1)
    assert bundles(presence) == []    # another, which has not spoken yet
    say(node, 'b')
    assert bundles(presence) == ['b']


@pytest.mark.parametrize('stays', ['a', 'b'])
def test_of_two_the_one_that_goes_on_speaking_is_there(node, presence, stays):
    alive(node, 2)
    say(node, 'b', 'a')
    assert bundles(presence) == ['a', 'b']
    alive(node, 1)
    say(node, stays)
    assert bundles(presence) == [stays]


def test_a_new_one_is_heard_before_the_last_one_is_missed(node, presence):
    alive(node, 1)
    say(node, 'b')
    alive(node, 2)
    say(node, 'a')
    alive(node, 1)
    assert bundles(presence) == ['a']
