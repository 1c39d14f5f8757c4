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
"""The pair at work: every frame gets its masks, of its own size, with its own header, refined by the right frame."""
import cv2
import numpy as np
import pytest
from harness import header_of, pixels, scene
from sensor_msgs.msg import CompressedImage, Image

from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.inference.pixels import refine
from ee_seg_ros.nodes.conversions import mask_of


@pytest.fixture(scope='module')
def pair(start, peer):
    """Both nodes, forwarding every frame, and patient: on a busy machine, too, all refinements are in time."""
    processes = start('onboard', criterion='never', deadline_ms=50000), start('offboard', criterion='never')
    peer.listen_to_masks()
    peer.wait_for_onboard()
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')

    def refine_one():
        stamp = peer.segment(scene(0))
        peer.finals([stamp])
        return stamp
    peer.send_until_heard(refine_one, 'refined_mask/compressed')
    return processes


@pytest.fixture(autouse=True)
def as_configured(pair, peer):
    """Each test starts from the same parameters, and leaves both nodes running."""
    peer.set(criterion='never', thresholds=[], output_width=0, output_height=0, finish='offboard', max_rate=0.0)
    yield
    for process in pair:
        assert process.running and 'Traceback' not in process.text, process.text


def run(engine, image):
    """Both sides of an image, in this process."""
    return run_pair(engine, image, 'never', (0.0,) * len(engine.bundle.judged_exits))


def refined_by(engine, image, size):
    """The onboard and the final mask of an image, computed in this process."""
    frame = run(engine, image)
    return frame.sides[0].output.mask(*size), frame.mask(*size)


def agreement(a, b):
    return float((a == b).mean())


def test_every_frame_gets_its_masks_in_order(peer, engine):
    images = [scene(40 * index) for index in range(6)]
    stamps, traces = [], []
    for image in images:    # one after the other: the server works on the newest only
        stamps.append(peer.segment(image, frame_id='left_eye'))
        traces += peer.finals(stamps[-1:])
    peer.wait(lambda: len(peer.received['refined_mask/compressed']) >= len(stamps), 'all refined masks')
    for topic in ('ee_seg/mask', 'ee_seg/final_mask', 'ee_seg/trace', 'refined_mask/compressed'):
        assert peer.stamps(topic) == stamps, topic
        assert {message.header.frame_id for message in peer.received[topic]} == {'left_eye'}
    for stamp, image, trace in zip(stamps, images, traces):
        expected, frame = pixels(peer.message('ee_seg/mask', stamp)), run(engine, image)
        assert agreement(expected, frame.sides[0].output.mask(240, 180)) > 0.999
        message = peer.message('refined_mask/compressed', stamp)
        assert message.format == 'mono8; png compressed'
        refined = mask_of(message, 240, 180, len(engine.bundle.classes))
        assert agreement(refined, frame.outputs[-1].mask(240, 180)) > 0.999
        if frame.kept is not None:    # settled cells, which are not sent
            refined = refine(expected, refined, frame.kept, frame.sides[0].placement)
        np.testing.assert_array_equal(pixels(peer.message('ee_seg/final_mask', stamp)), refined)
        sent = 1 if frame.kept is None else frame.onboard.sent.mean()
        assert float(trace['sent_cells']) == pytest.approx(sent, 1e-3)
        assert trace['final_source'] == 'refined' and float(trace['refined_age_ms']) > float(trace['mask_ms'])
        assert trace['forwarded'] == 'true' and int(trace['feature_bytes']) > 100 and trace['settled'] == 'false'
    # The scenes are so different that a mask of the wrong frame would not have passed.
    assert agreement(refined_by(engine, images[0], (240, 180))[1], refined_by(engine, images[1], (240, 180))[1]) < 0.9


def test_trace_has_every_key_of_the_contract(peer):
    trace, = peer.finals([peer.segment(scene(1))])
    assert set(trace) == {'exit', 'criterion', 'score', 'threshold', 'stopped_share', 'settled', 'forwarded',
                          'sent_cells', 'feature_bytes', 'final_source', 'refined_age_ms', 'preprocess_ms',
                          'inference_ms', 'postprocess_ms', 'mask_ms', 'dropped_before', 'expert', 'distortion',
                          'distortion_level', 'detector_ms'}
    assert trace['criterion'] == 'never' and trace['dropped_before'] == '0' and trace['stopped_share'] == ''
    assert float(trace['mask_ms']) >= float(trace['inference_ms']) > 0


@pytest.mark.parametrize('width, height, encoding', [
    (480, 360, 'rgb8'), (97, 63, 'mono8'), (320, 100, 'bgr8'), (90, 200, 'rgba8'), (201, 151, 'bgra8')])
def test_masks_have_the_size_of_the_image(peer, engine, width, height, encoding):
    image = scene(7, width, height)
    codes = {'mono8': cv2.COLOR_RGB2GRAY, 'bgr8': cv2.COLOR_RGB2BGR, 'rgba8': cv2.COLOR_RGB2RGBA,
             'bgra8': cv2.COLOR_RGB2BGRA}
    sent = cv2.cvtColor(image, codes[encoding]) if encoding in codes else image
    if encoding == 'mono8':
        image = cv2.cvtColor(sent, cv2.COLOR_GRAY2RGB)
    stamp = peer.segment(sent, encoding)
    peer.finals([stamp])
    expected, expected_refined = refined_by(engine, image, (width, height))
    assert agreement(pixels(peer.message('ee_seg/mask', stamp)), expected) > 0.999
    assert agreement(pixels(peer.message('ee_seg/final_mask', stamp)), expected_refined) > 0.999


def test_padded_rows_are_understood(peer, engine):
    image = scene(9, 100, 80)
    padded = np.full((80, 320), 77, np.uint8)
    padded[:, :300] = image.reshape(80, 300)
    message = Image(encoding='rgb8', width=100, height=80, step=320, data=padded.tobytes())
    stamp = peer.segment(message)
    expected, _ = refined_by(engine, image, (100, 80))
    assert agreement(pixels(peer.message('ee_seg/mask', stamp)), expected) > 0.999


def test_output_size_is_a_parameter(peer):
    peer.set(output_width=80, output_height=40)
    first = peer.segment(scene(3))
    peer.finals([first])
    peer.set(output_width=120, output_height=0)
    second = peer.segment(scene(4))
    peer.finals([second])
    for stamp, size in ((first, (80, 40)), (second, (120, 90))):
        for topic in ('ee_seg/mask', 'ee_seg/final_mask'):
            message = peer.message(topic, stamp)
            assert (message.width, message.height) == size
    assert peer.trace(second)['final_source'] == 'refined'


def test_settled_frames_are_not_forwarded(peer, bundle):
    peer.set(criterion='always')
    stamp = peer.segment(scene(5))
    trace, = peer.finals([stamp])
    assert (trace['exit'], trace['settled'], trace['forwarded']) == (bundle.exits[0].name, 'true', 'false')
    assert (trace['final_source'], trace['feature_bytes'], trace['refined_age_ms']) == ('onboard', '0', '')
    assert peer.message('ee_seg/final_mask', stamp).data == peer.message('ee_seg/mask', stamp).data


def test_criterion_and_thresholds_are_live(peer, bundle):
    last = bundle.onboard_exits[-1]
    peer.set(criterion='entropy', thresholds=[float(exit_ == last) for exit_ in bundle.judged_exits])
    late, = peer.finals([peer.segment(scene(6))])
    peer.set(thresholds=[1] + [0] * (len(bundle.judged_exits) - 1))    # whole numbers will do
    early, = peer.finals([peer.segment(scene(6))])
    assert (late['exit'], late['settled'], late['threshold']) == (last.name, 'true', '1')
    assert (early['exit'], early['criterion']) == (bundle.onboard_exits[0].name, 'entropy')
    assert 0 < float(early['score']) < 1


def test_wrong_parameters_are_refused_with_a_reason(peer):
    results = peer.set(criterion='bogus', operating_point='best', deadline_ms=-5.0, threads=0, finish='later',
                       max_rate='fast', thresholds=[0.5], bundle='other', autostart=False, output_width=-1)
    hints = ('entropy', 'balanced', 'deadline_ms', 'threads', 'onboard', 'a number', 'one per exit but the last',
             'clean up', 'read-only', 'output_width')
    for (accepted, reason), hint in zip(results, hints):
        assert not accepted and hint in reason, reason
    assert peer.set(deadline_ms=40000)[0][0]    # a whole number will do
    trace, = peer.finals([peer.segment(scene(2))])
    assert trace['criterion'] == 'never'


def test_bad_images_are_counted_and_the_node_goes_on(pair, peer):
    onboard, _ = pair
    good = scene(8)
    row = 240 * 3
    bad = [Image(encoding='nonsense', width=240, height=180, step=row, data=good.tobytes()),
           Image(encoding='rgb8'),
           Image(encoding='rgb8', width=240, height=180, step=row, data=good.tobytes()[:1000]),
           Image(encoding='rgb8', width=240, height=180, step=10, data=good.tobytes())]
    for message in bad + bad:
        peer.show(message)
        peer.finals([peer.segment(good)])
    peer.wait_for_diagnosis('ee_seg', 'bad_images', '8')
    for hint in ("encoding 'nonsense' is not supported: publish one of rgb8", 'an empty image came',
                 'only 1000 bytes of data', 'has a step of 10 bytes'):
        assert onboard.text.count(hint) == 1
    assert len(peer.received['ee_seg/mask']) == len(peer.received['ee_seg/final_mask']) == 8


def test_stamps_that_jump_back_begin_a_new_stream(peer):
    peer.stamp += 10_000_000_000
    first = peer.stamp
    lap = [first, first + 1_000_000, first + 2_000_000]
    for number, stamp in enumerate(lap + lap + lap):
        peer.segment(scene(number), stamp=stamp)
        peer.wait_for_finals(number + 1)
    for topic in ('ee_seg/mask', 'ee_seg/final_mask', 'ee_seg/trace'):
        assert peer.stamps(topic) == lap + lap + lap, topic


def test_finish_onboard_needs_no_server(peer, engine):
    peer.set(finish='onboard')
    image = scene(77)
    stamp = peer.segment(image)
    trace, = peer.finals([stamp])
    assert (trace['final_source'], trace['forwarded'], trace['feature_bytes']) == ('refined', 'false', '0')
    assert stamp not in peer.stamps('refined_mask/compressed')
    _, expected = refined_by(engine, image, (240, 180))
    assert agreement(pixels(peer.message('ee_seg/final_mask', stamp)), expected) > 0.999
    peer.set(finish='never')
    trace, = peer.finals([peer.segment(image)])
    assert (trace['final_source'], trace['settled']) == ('onboard', 'false')


def test_pictures_are_made_for_those_who_listen(peer, bundle, engine):
    topics = ('ee_seg/confidence', 'ee_seg/color', 'ee_seg/overlay', 'ee_seg/final_confidence', 'ee_seg/final_color',
              'refined_mask')
    compressed = ('ee_seg/overlay/compressed',)
    subscriptions = peer.listen(Image, *topics) + peer.listen(CompressedImage, *compressed)
    # The onboard node asks for refined confidences from its next second on.
    peer.wait(lambda: peer.node.count_subscribers('refined_confidence/compressed') == 1, 'interest in confidences')
    image = scene(11)
    complete = set()
    while not complete:    # the first frames may be ahead of the new connections
        peer.finals([peer.segment(image)])
        complete = set.intersection(*(set(peer.stamps(topic)) for topic in topics + compressed))
        assert len(peer.received['ee_seg/mask']) < 50, 'not all pictures come'
    stamp = complete.pop()
    for subscription in subscriptions:
        peer.node.destroy_subscription(subscription)
    ids = pixels(peer.message('ee_seg/mask', stamp))
    color = peer.message('ee_seg/color', stamp)
    assert (color.encoding, color.step, color.header) == ('rgb8', 720, header_of(stamp))
    np.testing.assert_array_equal(np.frombuffer(color.data, np.uint8).reshape(180, 240, 3), bundle.palette[ids])
    final_color = np.frombuffer(peer.message('ee_seg/final_color', stamp).data, np.uint8).reshape(180, 240, 3)
    final_ids = pixels(peer.message('ee_seg/final_mask', stamp))
    np.testing.assert_array_equal(final_color, bundle.palette[final_ids])
    overlay = np.frombuffer(peer.message('ee_seg/overlay', stamp).data, np.uint8).reshape(180, 240, 3)
    blended = (image.astype(float) + bundle.palette[ids]) / 2
    assert np.abs(overlay - blended).max() <= 1
    jpeg = cv2.imdecode(np.frombuffer(peer.message(compressed[0], stamp).data, np.uint8), cv2.IMREAD_COLOR)
    assert jpeg.shape == (180, 240, 3) and np.abs(jpeg[..., ::-1].astype(float) - blended).mean() < 8
    frame = run(engine, image)
    robot, refined = frame.sides[0], frame.outputs[-1]
    onboard, final = robot.output.confidence(240, 180), refined.confidence(240, 180)
    if frame.kept is not None:
        final = refine(onboard, final, frame.kept, robot.placement)
    for topic, expected in (('ee_seg/confidence', onboard), ('ee_seg/final_confidence', final)):
        assert np.abs(pixels(peer.message(topic, stamp)).astype(int) - expected).mean() < 1, topic
    assert agreement(pixels(peer.message('refined_mask', stamp)), refined.mask(240, 180)) > 0.999
