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
"""A model that fails in the middle of a frame: the frame still gets its masks, and the next one is not affected."""
import threading

import pytest
import rclpy
from harness import Peer, pixels, scene
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from ee_seg_ros.nodes.onboard import Onboard


@pytest.fixture(scope='module')
def node(namespace):
    """The onboard node in this process, so that its engine can be broken."""
    rclpy.init(args=['--ros-args', '-r', f'__ns:={namespace}', '-p', 'criterion:=never', '-p', 'finish:=onboard', '-p',
                     'threads:=1', '-p', 'deadline_ms:=50000'], signal_handler_options=SignalHandlerOptions.NO)
    node = Onboard()
    node.start()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    node.done.set()
    executor.shutdown()
    thread.join(30)
    node.stop()
    node.destroy_node()
    rclpy.shutdown()


@pytest.fixture(scope='module')
def peer(namespace, node):
    peer = Peer(namespace)
    peer.listen_to_masks()
    peer.wait_for_onboard()
    yield peer
    peer.close()


def fail(*_, **__):
    raise MemoryError('no memory')


def test_failing_stages_give_an_unlabelled_mask(node, peer, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(node._engine, 'segment', fail)
        stamp = peer.segment(scene(1))
        trace, = peer.finals([stamp])
    for topic in ('ee_seg/mask', 'ee_seg/final_mask'):
        assert (pixels(peer.message(topic, stamp)) == 255).all()
    assert (trace['exit'], trace['settled'], trace['final_source']) == ('', 'false', 'onboard')
    peer.wait_for_diagnosis('ee_seg', 'failed_frames', '1')
    trace, = peer.finals([peer.segment(scene(1))])
    assert trace['final_source'] == 'refined'


@pytest.mark.parametrize('part, source', [('_engine.encode', 'onboard'), ('_rest.finish', 'refused')])
def test_failing_refinement_leaves_the_onboard_mask(node, peer, monkeypatch, part, source):
    engine, method = part.split('.')
    with monkeypatch.context() as broken:
        broken.setattr(getattr(node, engine), method, fail)
        stamp = peer.segment(scene(2))
        trace, = peer.finals([stamp])
    assert trace['final_source'] == source
    assert peer.message('ee_seg/final_mask', stamp).data == peer.message('ee_seg/mask', stamp).data
    trace, = peer.finals([peer.segment(scene(2))])
    assert trace['final_source'] == 'refined'
