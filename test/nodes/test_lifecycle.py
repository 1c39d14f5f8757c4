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
"""Transitions that fail half-way, and that come in the middle of a frame, with a node whose parts can be broken.

What the nodes do as processes is in test/end_to_end/test_node_lifecycle.py.
"""
import threading

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')

from rclpy.lifecycle import TransitionCallbackReturn  # noqa: E402
from rclpy.signals import SignalHandlerOptions  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from ee_seg_ros.inference.experts import Choice  # noqa: E402
from ee_seg_ros.nodes import onboard  # noqa: E402
from ee_seg_ros.nodes.conversions import image_message  # noqa: E402
from ee_seg_ros.nodes.diagnostics import ERROR  # noqa: E402

SUCCESS, FAILURE, FAILED = (TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE,
                            TransitionCallbackReturn.ERROR)
IMAGE = image_message(Header(), np.full((60, 80, 3), 90, np.uint8), 'rgb8')
PATIENCE = 60


@pytest.fixture
def node():
    rclpy.init(args=['--ros-args', '-r', '__ns:=/breakable', '-p', 'threads:=1', '-p', 'finish:=never'],
               signal_handler_options=SignalHandlerOptions.NO)
    made = onboard.Onboard()
    yield made
    made.stop()
    made.destroy_node()
    rclpy.shutdown()


def fail(*_, **__):
    raise OSError('no space left')


def works(node):
    """Whether an active node makes a mask."""
    before = node._tally.report()[0]['masks']
    node._on_image(IMAGE)
    for _ in range(PATIENCE * 20):
        if node._tally.report()[0]['masks'] > before:
            return True
        threading.Event().wait(0.05)
    return False


def held(node):
    return (len(list(node.publishers)), len(list(node.subscriptions)), len(list(node.timers)),
            {thread.name for thread in threading.enumerate()} & {'inference', 'final masks'})


@pytest.mark.parametrize('part', ['FinalMasks', 'OffboardLink', 'start_thread'])
def test_half_activated_is_undone(node, monkeypatch, part):
    assert node.trigger_configure() == SUCCESS
    before = held(node)
    with monkeypatch.context() as broken:
        broken.setattr(onboard, part, fail)
        assert node.trigger_activate() == FAILURE
    assert held(node) == before
    whole = node._examine()['']
    assert whole.level == ERROR and whole.message == 'inactive: cannot be activated: OSError: no space left'
    assert node.trigger_activate() == SUCCESS and works(node)


@pytest.mark.parametrize('part', ['Outputs', 'Tally'])
def test_half_configured_is_undone(node, monkeypatch, part):
    before = held(node)
    with monkeypatch.context() as broken:
        broken.setattr(onboard, part, fail)
        assert node.trigger_configure() == FAILURE
    assert held(node) == before and node.bundle is None
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS and works(node)


@pytest.mark.parametrize('part, before, transition', [
    (onboard.OffboardLink, [], 'deactivate'), (onboard.Outputs, ['deactivate'], 'cleanup'),
    (onboard.OffboardLink, [], 'shutdown')])
def test_what_cannot_be_put_away_leaves_an_unconfigured_node(node, monkeypatch, part, before, transition):
    empty, close = held(node), part.close

    def close_and_fail(self):
        close(self)
        fail()
    with monkeypatch.context() as broken:
        broken.setattr(part, 'close', close_and_fail)
        for name in ('configure', 'activate', *before):
            assert getattr(node, f'trigger_{name}')() == SUCCESS
        assert getattr(node, f'trigger_{transition}')() == FAILED
    assert held(node) == empty and node.bundle is None
    assert 'OSError: no space left' in node._examine()[''].message
    assert node.done.is_set() == (transition == 'shutdown')
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS and works(node)


@pytest.mark.parametrize('transition', ['trigger_deactivate', 'trigger_shutdown'])
def test_a_transition_in_the_middle_of_a_frame_waits_for_its_masks(node, monkeypatch, transition):
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
    begun, go_on, segment = threading.Event(), threading.Event(), node._engine.segment

    def slowly(*arguments, **named):
        begun.set()
        assert go_on.wait(PATIENCE)
        return segment(*arguments, **named)
    monkeypatch.setattr(node._engine, 'segment', slowly)
    published = []
    monkeypatch.setattr(node._outputs, 'publish_mask', lambda frame: published.append('mask'))
    monkeypatch.setattr(node._outputs, 'publish_final', lambda *_: published.append('final'))
    node._on_image(IMAGE)
    assert begun.wait(PATIENCE)
    result = []
    thread = threading.Thread(target=lambda: result.append(getattr(node, transition)()))
    thread.start()
    while not node._parking._closed:    # the transition is under way, and waits for the frame
        assert thread.is_alive()
        thread.join(0.01)
    assert not published and not result
    go_on.set()
    thread.join(PATIENCE)
    assert result == [SUCCESS] and published == ['mask', 'final']
    assert node.done.is_set() == (transition == 'trigger_shutdown')
    assert held(node)[3] == set()


def test_an_image_is_judged_by_what_was_detected(node, monkeypatch):
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
    seen, segment = [], node._engine.segment

    def noting(*arguments, **named):
        seen.append((named['expert'], named['strength']))
        return segment(*arguments, **named)
    monkeypatch.setattr(node._engine, 'segment', noting)
    monkeypatch.setattr(node._chooser, 'choose', lambda *_: Choice('noise', 'noise', 0.7))
    assert works(node) and seen == [('noise', 0.7)]
