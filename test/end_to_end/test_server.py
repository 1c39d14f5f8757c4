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
"""The offboard node against robots that this test plays: it serves them all, and nothing that they send ends it."""
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import DEEP, header_of, scene
from sensor_msgs.msg import CompressedImage

from ee_seg_ros.inference.features import FORMAT, pack
from ee_seg_ros.inference.pixels import OnboardMap
from ee_seg_ros.nodes.conversions import compressed_message, mask_of
from ee_seg_ros.nodes.qos import OFFBOARD_INFO

ROBOTS = ('a', 'b')


@pytest.fixture(scope='module')
def server(start, peer, payload):
    process = start('offboard', robots="['a', 'b']", criterion='never')
    peer.listen(CompressedImage, *(f'{robot}/refined_mask/compressed' for robot in ROBOTS))
    peer.listen(DiagnosticStatus, *(f'{robot}/offboard_info' for robot in ROBOTS), qos=OFFBOARD_INFO)
    peer.features = {robot: peer.node.create_publisher(CompressedImage, f'{robot}/features', DEEP) for robot in ROBOTS}
    peer.wait(lambda: all(publisher.get_subscription_count() for publisher in peer.features.values())
              and all(peer.received[f'{robot}/offboard_info'] for robot in ROBOTS)
              and all(peer.node.count_publishers(f'{robot}/refined_mask/compressed') for robot in ROBOTS), 'the server')
    for robot in ROBOTS:
        peer.send_until_heard(lambda robot=robot: send(peer, robot, payload[0]), f'{robot}/refined_mask/compressed')
    process.told = peer.received['a/offboard_info'][0]
    return process


@pytest.fixture(scope='module')
def payload(bundle, engine):
    """(features of a scene as they travel, the refined mask that belongs to them)."""
    result = engine.segment(scene(30), 'never')
    onboard, features = engine.onboard_map(result), engine.encode(result)
    refined_mask = engine.finish(features, result.placement, onboard=onboard).output.mask(240, 180)
    return pack(bundle, features, result.placement, (240, 180), onboard), refined_mask


def send(peer, robot, data):
    peer.stamp += 1
    peer.features[robot].publish(compressed_message(header_of(peer.stamp, robot), data, FORMAT))
    return peer.stamp


def refined(peer, robot, stamp, bundle):
    topic = f'{robot}/refined_mask/compressed'
    peer.wait(lambda: stamp in peer.stamps(topic), f'the refined mask {stamp} of {robot}')
    message = peer.message(topic, stamp)
    assert message.header == header_of(stamp, robot)
    return mask_of(message, 240, 180, len(bundle.classes))


def test_says_who_it_is(server, bundle):
    told = {pair.key: pair.value for pair in server.told.values}
    assert told['fingerprint'] == bundle.fingerprint and told['features'] == FORMAT and told['id']


def test_serves_every_robot(server, peer, payload, bundle):
    data, expected = payload
    for robot in ROBOTS:
        assert (refined(peer, robot, send(peer, robot, data), bundle) == expected).mean() > 0.999
    assert all(len(peer.received[f'{robot}/refined_mask/compressed']) == 1 for robot in ROBOTS)


def test_broken_features_are_refused_and_it_goes_on(server, peer, payload, bundle):
    data, _ = payload
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    foreign = type('', (), {'fingerprint': '0123456789abcdef', 'split': bundle.split,
                            'feature_tensors': bundle.feature_tensors})
    tensors = {name: np.zeros(bundle.tensors[name]['shape'], np.uint8) for name in bundle.feature_tensors}
    placement = type('', (), {'image_width': 240, 'image_height': 180})
    broken = [b'', b'garbage', data[:len(data) // 2], bytes(flipped), bytes(2_000_000),
              pack(foreign, tensors, placement, (240, 180), OnboardMap(np.zeros((42, 56), np.uint8)))]
    for number, bad in enumerate(broken):
        send(peer, 'a', bad)
        peer.wait_for_diagnosis('ee_seg_offboard', 'refused', str(number + 1))
        refined(peer, 'a', send(peer, 'a', data), bundle)
    values = peer.diagnostics['ee_seg_offboard'][2]
    assert (values['refused.damaged'], values['refused.oversized'], values['refused.foreign']) == ('4', '1', '1')
    for kind in ('damaged', 'oversized', 'foreign'):
        assert server.text.count(f'features refused ({kind})') == 1
    assert server.running and 'Traceback' not in server.text, server.text
