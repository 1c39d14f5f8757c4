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

from ee_seg_ros.nodes.presence import AGAIN_S, LOOK_S, SILENCE_S, Presence, announce  # noqa: E402


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

    def destroy_subscription(self, subscription):
        self.hear = self.count = None


class Clock:
    """The steady clock as the tests turn it."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr('ee_seg_ros.nodes.presence.time', clock)
    return clock


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def changes():
    return []


@pytest.fixture
def presence(node, clock, changes):
    return Presence(node, 'offboard_info', lambda: changes.append(clock.now))


def say(node, *names):
    for name in names:
        node.hear(DiagnosticStatus(hardware_id=name, values=[KeyValue(key='bundle', value=name)]))


def alive(node, count):
    node.count(SimpleNamespace(alive_count=count))


def let_pass(node, clock, seconds, *names):
    """Time goes by, in which these speak as often as `announce` does."""
    for _ in range(round(seconds / LOOK_S)):
        spoken = clock.now // AGAIN_S
        clock.now += LOOK_S
        if clock.now // AGAIN_S > spoken:
            say(node, *names)
        node.timers[LOOK_S]()


def bundles(presence):
    return [server['bundle'] for server in presence.servers]


def test_a_server_says_again_that_it_serves_until_it_ends(node):
    end = announce(node, 'offboard_info', {'id': 'a', 'bundle': 'street'})
    node.timers[AGAIN_S]()
    assert len(node.said) == 2 and node.said[0] == node.said[1]
    end()
    assert not node.timers and node.said is None


@pytest.mark.parametrize('count', [0, 1, 2, -1])
def test_one_that_speaks_is_there_whatever_dds_counts(node, clock, presence, changes, count):
    alive(node, count)
    let_pass(node, clock, 5, 'a')
    assert bundles(presence) == ['a']
    del changes[:]
    killed = clock.now
    let_pass(node, clock, 5)
    assert bundles(presence) == []
    assert killed < changes[0] <= killed + SILENCE_S + LOOK_S + 1e-6    # and it was said
    let_pass(node, clock, 1, 'b')
    assert bundles(presence) == ['b']


@pytest.mark.parametrize('count_first', [True, False])
def test_one_that_only_latched_its_message_is_there_while_dds_counts_it(node, clock, presence, count_first):
    if count_first:
        alive(node, 1)
    say(node, 'a')
    if not count_first:
        alive(node, 1)
    let_pass(node, clock, 60)
    assert bundles(presence) == ['a']
    alive(node, 0)
    assert bundles(presence) == []


def test_one_that_only_latched_its_message_and_is_not_counted_is_gone_soon(node, clock, presence, changes):
    say(node, 'a')
    assert bundles(presence) == ['a']
    del changes[:]
    let_pass(node, clock, 2)
    assert bundles(presence) == [] and len(changes) == 1


def test_what_one_told_ends_with_it(node, presence):
    alive(node, 1)
    say(node, 'a')
    alive(node, 0)
    assert bundles(presence) == []    # at once, before it is missed
    alive(node, 1)
    assert bundles(presence) == []    # another, which has not spoken yet
    say(node, 'b')
    assert bundles(presence) == ['b']


@pytest.mark.parametrize('stays', ['a', 'b'])
@pytest.mark.parametrize('count', [0, 1, 2])
def test_of_two_the_one_that_goes_on_speaking_is_there(node, clock, presence, stays, count):
    alive(node, 2)
    let_pass(node, clock, 2, 'b', 'a')
    assert bundles(presence) == ['a', 'b']
    alive(node, count)
    let_pass(node, clock, 2, stays)
    assert bundles(presence) == [stays]


def test_of_two_that_latched_the_one_heard_last_is_there(node, clock, presence):
    alive(node, 2)
    say(node, 'b', 'a')
    let_pass(node, clock, 5)
    assert bundles(presence) == ['a', 'b']
    alive(node, 1)
    assert bundles(presence) == ['a']


def test_nobody_is_missed_because_this_process_stood_still(node, clock, presence):
    let_pass(node, clock, 2, 'a')
    clock.now += 30
    node.timers[LOOK_S]()    # before the messages of that time are read
    assert bundles(presence) == ['a']
    let_pass(node, clock, 2, 'a')
    assert bundles(presence) == ['a']


def test_nothing_is_followed_after_the_end(node, presence):
    say(node, 'a')
    presence.close()
    assert presence.servers == [] and not node.timers
