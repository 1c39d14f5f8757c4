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
"""The onboard node against a server that this test plays: what it does with every kind of answer, and with none."""
import cv2
import numpy as np
import pytest
from harness import DEEP, header_of, pixels, scene
from sensor_msgs.msg import CompressedImage

from ee_seg_ros.inference.features import unpack
from ee_seg_ros.inference.pixels import refine
from ee_seg_ros.nodes.conversions import compressed_message, png_message
from ee_seg_ros.nodes.presence import announce

OK, WARN, ERROR = b'\x00', b'\x01', b'\x02'
AGES = 50000.0    # ms: a deadline that does not come during a test


@pytest.fixture(scope='module')
def onboard(start, peer):
    process = start('onboard', criterion='never', deadline_ms=AGES)
    peer.listen_to_masks()
    peer.listen(CompressedImage, 'features')
    peer.answers = peer.node.create_publisher(CompressedImage, 'refined_mask/compressed', DEEP)
    peer.wait_for_onboard()
    peer.wait(lambda: peer.answers.get_subscription_count() == 2, 'the other end of the answers')
    return process


@pytest.fixture
def server(onboard, peer, bundle):
    """Announces a matching server for the time of a test."""
    peer.set(deadline_ms=AGES)
    end = announce(peer.node, 'offboard_info', {'id': 'test', 'bundle': 'street', 'fingerprint': bundle.fingerprint})
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
    yield
    end()
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'false')
    assert onboard.running and 'Traceback' not in onboard.text, onboard.text


def ask(peer, number):
    """Show so many frames and wait for their features; their stamps."""
    stamps = [peer.segment(scene(20 * index)) for index in range(number)]
    peer.wait(lambda: peer.stamps('features') == stamps, 'all features')
    return stamps


def final_of(engine, peer, stamp, index, class_id):
    """The final mask of a frame that shows `ask`'s scene `index`, if the answer is this class everywhere."""
    ids, robot = pixels(peer.message('ee_seg/mask', stamp)), engine.segment(scene(20 * index), 'never')
    kept, refined = engine.kept(robot, engine.onboard_map(robot)), np.full_like(ids, class_id)
    return refined if kept is None else refine(ids, refined, kept, robot.placement)


def answer(peer, stamp, class_id, size=(240, 180), frame_id='test_camera'):
    mask = np.full(size[::-1], class_id, np.uint8)
    peer.answers.publish(png_message(header_of(stamp, frame_id), mask))


def test_features_say_what_they_are(server, peer, bundle):
    stamp, = ask(peer, 1)
    message = peer.message('features', stamp)
    assert message.format.startswith('ee_seg features') and message.header == header_of(stamp)
    received = unpack(bundle, message.data)
    assert (received.output_width, received.output_height, received.placement.image_width) == (240, 180, 240)
    assert not peer.received['ee_seg/final_mask']
    answer(peer, stamp, 4)
    peer.finals([stamp])


def test_answers_in_any_order_leave_in_the_order_of_stamps(server, peer, engine):
    stamps = ask(peer, 4)
    for index in (2, 3, 1):
        answer(peer, stamps[index], index)
    peer.wait(lambda: len(peer.received['refined_mask/compressed']) == 3, 'own answers')
    assert not peer.received['ee_seg/final_mask']    # the first frame is awaited still
    answer(peer, stamps[0], 0)
    traces = peer.finals(stamps)
    assert peer.stamps('ee_seg/final_mask') == peer.stamps('ee_seg/trace') == stamps
    for class_id, (stamp, trace) in enumerate(zip(stamps, traces)):
        assert trace['final_source'] == 'refined'
        np.testing.assert_array_equal(pixels(peer.message('ee_seg/final_mask', stamp)),
                                      final_of(engine, peer, stamp, class_id, class_id))


def test_unusable_answers_are_refused(onboard, server, peer):
    jpeg = cv2.imencode('.jpg', np.zeros((180, 240), np.uint8))[1]
    wrong = [lambda stamp: answer(peer, stamp, 3, size=(100, 180)), lambda stamp: answer(peer, stamp, 99),
             lambda stamp: peer.answers.publish(compressed_message(header_of(stamp), memoryview(jpeg), 'jpeg')),
             lambda stamp: peer.answers.publish(compressed_message(header_of(stamp), b'', 'mono8; png compressed'))]
    before = int(peer.diagnostics['ee_seg'][2]['refined_refused'])
    stamps = ask(peer, len(wrong))
    for send, stamp in zip(wrong, stamps):
        send(stamp)
    for stamp, trace in zip(stamps, peer.finals(stamps)):
        assert trace['final_source'] == 'refused'
        assert peer.message('ee_seg/final_mask', stamp).data == peer.message('ee_seg/mask', stamp).data
    assert onboard.text.count('a refined mask was refused: it is 100x180 pixels, expected 240x180') == 1
    peer.wait_for_diagnosis('ee_seg', 'refined_refused', str(before + len(wrong)))


def test_answers_for_other_frames_change_nothing(server, peer, engine):
    stamp, = ask(peer, 1)
    answer(peer, stamp + 1, 7)
    answer(peer, stamp, 7, frame_id='another_camera')
    answer(peer, stamp, 2)
    trace, = peer.finals([stamp])
    assert trace['final_source'] == 'refined'
    np.testing.assert_array_equal(pixels(peer.message('ee_seg/final_mask', stamp)), final_of(engine, peer, stamp, 0, 2))


def test_without_an_answer_the_onboard_mask_is_final_at_the_deadline(server, peer):
    late = int(peer.diagnostics['ee_seg'][2]['refined_late'])
    peer.set(deadline_ms=200.0)
    stamps = ask(peer, 3)
    for stamp, trace in zip(stamps, peer.finals(stamps)):
        assert (trace['final_source'], trace['forwarded'], trace['refined_age_ms']) == ('late', 'true', '')
        assert peer.message('ee_seg/final_mask', stamp).data == peer.message('ee_seg/mask', stamp).data
        answer(peer, stamp, 1)    # too late: counted, and never a second final mask
    peer.wait_for_diagnosis('ee_seg', 'refined_late', str(late + 3))
    assert peer.stamps('ee_seg/final_mask') == stamps


def test_pending_frames_leave_when_stamps_jump_back(server, peer):
    stamps = ask(peer, 2)
    again = peer.segment(scene(1), stamp=stamps[0] - 5_000_000_000)
    traces = peer.finals(stamps)
    assert [trace['final_source'] for trace in traces] == ['late', 'late']
    peer.wait(lambda: again in peer.stamps('features'), 'the features of the new stream')
    answer(peer, stamps[1], 1)    # belongs to the stream that is over
    answer(peer, again, 6)
    trace, = peer.finals([again])
    assert trace['final_source'] == 'refined'
    assert peer.stamps('ee_seg/final_mask') == stamps + [again]


def test_a_stamp_seen_twice_in_flight_is_not_forwarded_twice(onboard, server, peer):
    stamp, = ask(peer, 1)
    peer.segment(scene(1), stamp=stamp)
    peer.segment(scene(2), stamp=stamp)
    assert peer.stamps('features') == [stamp]
    answer(peer, stamp, 5)
    peer.wait_for_finals(3)
    sources = [message.status[0].message for message in peer.received['ee_seg/trace']]
    assert sources == ['refined', 'onboard', 'onboard']
    assert onboard.text.count('came twice while in flight') == 1


def test_a_server_with_another_bundle_gets_nothing(onboard, peer):
    end = announce(peer.node, 'offboard_info', {'id': 'x', 'bundle': 'other', 'fingerprint': 'feedfacefeedface'})
    peer.wait(lambda: 'feedfacefeedface' in peer.diagnostics['ee_seg'][1], 'the error in /diagnostics')
    assert peer.diagnostics['ee_seg'][0] == b'\x02'
    trace, = peer.finals([peer.segment(scene(1))])
    assert (trace['forwarded'], trace['final_source']) == ('false', 'onboard')
    assert not peer.received['features']
    end()
    peer.wait(lambda: peer.diagnostics['ee_seg'][0] != b'\x02', 'the end of the error')
    assert onboard.text.count('runs another bundle (other feedfacefeedface)') == 1


def test_of_two_servers_the_one_that_leaves_is_forgotten(onboard, peer, bundle):
    """Whichever spoke last: features go to the one that matches, and what the other said ends with it."""
    matching = {'id': 'matching', 'bundle': 'street', 'fingerprint': bundle.fingerprint}
    foreign = {'id': 'foreign', 'bundle': 'other', 'fingerprint': 'feedfacefeedface'}

    def link(level, present, nodes):
        def said():
            found, _, values = peer.diagnostics['ee_seg: link']
            return found, values.get('offboard_present'), values.get('offboard_nodes')
        peer.wait(lambda: said() == (level, present, nodes), f'{level}, {present}, {nodes} of the link')
    for stays, leaves, after in ((matching, foreign, (OK, 'true')), (foreign, matching, (ERROR, 'false'))):
        for order in ((stays, leaves), (leaves, stays)):
            ends = {told['id']: announce(peer.node, 'offboard_info', told) for told in order}
            link(OK, 'true', '2')
            ends[leaves['id']]()
            link(*after, '1')
            ends[stays['id']]()
            link(WARN, 'false', '0')


def test_without_a_server_final_masks_come_at_once(onboard, peer):
    trace, = peer.finals([peer.segment(scene(2))])
    assert (trace['forwarded'], trace['final_source'], trace['settled']) == ('false', 'onboard', 'false')
