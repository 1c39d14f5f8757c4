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
"""What goes wrong shows in /diagnostics of the part that it concerns, and is gone when it is mended.

How fast is a matter of the constants (see test_health.py); here it only has to happen.
"""
import signal
from dataclasses import replace

import pytest
from harness import DEEP, header_of, scene
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import CompressedImage, Image

from ee_seg_ros.inference.features import FORMAT, pack
from ee_seg_ros.nodes.conversions import compressed_message

OK, WARN, ERROR = b'\x00', b'\x01', b'\x02'
PICTURE = scene(1)


@pytest.fixture(scope='module')
def onboard(start, peer):
    process = start('onboard', criterion='never')
    peer.wait_for_onboard()
    return process


@pytest.fixture
def stream(onboard, peer):
    """Call a function, `send`, so many times a second while this test waits, in place of what it did before."""
    timers = []

    def change(rate, send=lambda: peer.show(PICTURE)):
        while timers:
            peer.node.destroy_timer(timers.pop())
        if rate:
            timers.append(peer.node.create_timer(1 / rate, send))
    yield change
    change(0)


def wait_for(peer, part, level, words):
    """Wait until a part of a node, and the node as a whole if it is not well, reports this."""
    node = part.partition(':')[0]

    def said():
        found = peer.diagnostics[part]
        whole = peer.diagnostics[node]
        return found[0] == level and words in found[1] and (level == OK or (whole[0] >= level and words in whole[1]))
    peer.wait(said, f'{part}: {words}, but {peer.diagnostics.get(part)}')


def test_a_camera_that_dies(stream, peer):
    stream(10)
    wait_for(peer, 'ee_seg: camera', OK, 'images come')
    stream(0)
    wait_for(peer, 'ee_seg: camera', WARN, 'no images on /test_node_diagnostics/image for more than 1.5 s')
    assert peer.set(camera_timeout_ms=100.0) == [(True, '')]
    wait_for(peer, 'ee_seg: camera', ERROR, 'for more than 0.1 s')
    peer.set(camera_timeout_ms=1500.0)
    stream(10)
    wait_for(peer, 'ee_seg: camera', OK, 'images come')


def test_images_that_cannot_be_used(stream, peer):
    stream(10, lambda: peer.show(Image(encoding='rgb8', width=20, height=9, step=3, data=bytes(60))))
    wait_for(peer, 'ee_seg: camera', ERROR, 'images are refused')
    stream(10)
    wait_for(peer, 'ee_seg: camera', OK, 'images come')


def test_more_images_than_it_can_work_on(stream, peer):
    stream(5, lambda: [peer.show(PICTURE) for _ in range(5)])    # five at once are too many for any machine
    wait_for(peer, 'ee_seg: inference', ERROR, 'more than 0.5 of what comes is dropped')
    assert int(peer.diagnostics['ee_seg'][2]['dropped']) > 0
    peer.set(max_rate=0.5)    # what is dropped to keep to a rate is dropped on purpose
    wait_for(peer, 'ee_seg: inference', OK, 'keeping up')
    assert float(peer.diagnostics['ee_seg: inference'][2]['dropped_share']) > 0.5
    stream(2)
    peer.set(max_rate=0.0)
    peer.wait_for_diagnosis('ee_seg: inference', 'dropped_share', '0')


def test_a_server_that_is_killed(start, stream, peer):
    stream(5)
    wait_for(peer, 'ee_seg: link', WARN, 'no offboard node')
    for _ in range(2):
        server = start('offboard')
        wait_for(peer, 'ee_seg: link', OK, 'an offboard node is there')
        server.end(signal.SIGKILL)
        wait_for(peer, 'ee_seg: link', WARN, 'no offboard node')
    peer.set(finish='never')
    wait_for(peer, 'ee_seg: link', OK, 'not in use')
    peer.set(finish='offboard')


def test_a_server_with_another_bundle(start, stream, peer):
    server = start('offboard', bundle='street_twin')
    wait_for(peer, 'ee_seg: link', ERROR, 'another bundle')
    server.end()
    wait_for(peer, 'ee_seg: link', WARN, 'no offboard node')


def change(peer, node, *transitions):
    return [peer.call(ChangeState, f'{node}/change_state', ChangeState.Request(transition=Transition(id=each))).success
            for each in transitions]


def test_a_model_that_cannot_be_had(onboard, peer):
    """A provider that this machine lacks, and a bundle that there is not."""
    again = (Transition.TRANSITION_CLEANUP, Transition.TRANSITION_CONFIGURE)
    change(peer, 'ee_seg', Transition.TRANSITION_DEACTIVATE)
    wait_for(peer, 'ee_seg', OK, 'inactive')
    change(peer, 'ee_seg', Transition.TRANSITION_CLEANUP)
    wait_for(peer, 'ee_seg', OK, 'unconfigured')
    peer.set(bundle='no_such_bundle')
    assert change(peer, 'ee_seg', Transition.TRANSITION_CONFIGURE) == [False]
    wait_for(peer, 'ee_seg: model', ERROR, "unconfigured: no bundle 'no_such_bundle'")
    peer.set(bundle='street', providers=['CUDAExecutionProvider'])
    change(peer, 'ee_seg', Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    wait_for(peer, 'ee_seg: model', WARN, 'CUDAExecutionProvider could not be used: running on CPUExecutionProvider')
    change(peer, 'ee_seg', Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)
    peer.set(providers=['CPUExecutionProvider'])
    change(peer, 'ee_seg', *again[1:], Transition.TRANSITION_ACTIVATE)
    wait_for(peer, 'ee_seg: model', OK, 'street loaded')
    assert onboard.running and 'Traceback' not in onboard.text, onboard.text


def test_the_server_says_how_it_is(start, stream, peer, bundle, engine):
    server = start('offboard', robots="['a']", criterion='never', providers="['CUDAExecutionProvider']")
    wait_for(peer, 'ee_seg_offboard: robots', WARN, 'no features from a: no onboard node is there')
    wait_for(peer, 'ee_seg_offboard: model', WARN, 'CUDAExecutionProvider could not be used')
    features = peer.node.create_publisher(CompressedImage, 'a/features', DEEP)
    wait_for(peer, 'ee_seg_offboard: robots', OK, 'serving')
    result = engine.segment(PICTURE, 'never')
    foreign = type('', (), {'fingerprint': 'feedfacefeedface', 'split': bundle.split,
                            'feature_tensors': bundle.feature_tensors})
    whole = replace(engine.onboard_map(result), sent=None)    # all cells
    payloads = [pack(of, engine.encode(result), result.placement, (240, 180), whole) for of in (bundle, foreign)]

    def send(data):
        peer.stamp += 1
        features.publish(compressed_message(header_of(peer.stamp), data, FORMAT))
    stream(10, lambda: send(payloads[1]))
    wait_for(peer, 'ee_seg_offboard: robots', ERROR, 'features of another bundle are refused')
    stream(10, lambda: send(b'garbage'))
    wait_for(peer, 'ee_seg_offboard: robots', WARN, 'features are refused')
    stream(300, lambda: send(payloads[0]))
    wait_for(peer, 'ee_seg_offboard: robots', OK, 'serving')
    wait_for(peer, 'ee_seg_offboard: inference', ERROR, 'overload')
    stream(2, lambda: send(payloads[0]))
    wait_for(peer, 'ee_seg_offboard: inference', OK, 'keeping up')
    peer.node.destroy_publisher(features)
    stream(0)
    wait_for(peer, 'ee_seg_offboard: robots', WARN, 'no features from a')
    assert server.end() == 0 and 'Traceback' not in server.text, server.text
