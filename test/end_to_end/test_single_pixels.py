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
"""Pixels that stop one by one, with real nodes: switched on and off while they run, and no frame goes without masks."""
import numpy as np
import pytest
from harness import pixels
from tiny import HEIGHT, WIDTH, mixed_image, tiny_bundle

from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.nodes.conversions import mask_of

# No frame settles by these: a share of stopped pixels that there cannot be, no entropy at all.
AT_NO_EXIT = {'never': [2.0] * 4, 'class_threshold': [2.0] * 4, 'uniform': [2.0] * 4, 'entropy': [0.0] * 4}
SURE = mixed_image(1, ((8, 120), (30, 120)))    # all pixels of which stop onboard, by `class_threshold`


@pytest.fixture(scope='module')
def windowed(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'windowed', cells=True))


@pytest.fixture(scope='module')
def engine(windowed):
    return Engine(windowed, threads=1)


@pytest.fixture(scope='module')
def pair(start, peer, windowed):
    processes = (start('onboard', bundle=windowed.path, criterion='never', deadline_ms=50000),
                 start('offboard', bundle=windowed.path, criterion='never'))
    peer.listen_to_masks()
    peer.wait_for_onboard()
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')

    def refine_one():
        stamp = peer.segment(mixed_image())
        peer.finals([stamp])
        return stamp
    peer.send_until_heard(refine_one, 'refined_mask/compressed')
    yield processes
    for process in processes:
        assert process.running and 'Traceback' not in process.text, process.text
    for node in ('ee_seg', 'ee_seg_offboard'):
        peer.wait_for_diagnosis(node, 'failed_frames', '0')


def choose(peer, criterion, **more):
    """Both nodes judge alike from now on."""
    for node in ('ee_seg', 'ee_seg_offboard'):
        assert all(accepted for accepted, _ in peer.set(node, thresholds=AT_NO_EXIT[criterion], criterion=criterion))
    assert all(accepted for accepted, _ in peer.set(**{'finish': 'offboard', **more}))


def check(peer, engine, image, criterion):
    """Show an image; its masks and its trace are those of a run in this process, which is returned with the trace."""
    frame, stamp = run_pair(engine, image, criterion, AT_NO_EXIT[criterion]), peer.segment(image)
    trace, = peer.finals([stamp])
    robot = frame.sides[0]
    np.testing.assert_array_equal(pixels(peer.message('ee_seg/mask', stamp)), robot.output.mask(WIDTH, HEIGHT))
    np.testing.assert_array_equal(pixels(peer.message('ee_seg/final_mask', stamp)), frame.mask(WIDTH, HEIGHT))
    assert (trace['criterion'], trace['exit']) == (criterion, robot.exit_name)
    assert (trace['settled'] == 'true') == robot.settled
    if robot.output.stopped_share is None:    # whole frames stop
        assert trace['stopped_share'] == ''
    else:
        assert float(trace['stopped_share']) == pytest.approx(robot.output.stopped_share, 1e-3)
    sent = 0.0 if frame.onboard is None else frame.onboard.sent.mean()
    assert float(trace['sent_cells']) == pytest.approx(sent, 1e-3)
    return frame, trace, stamp


def test_the_criterion_is_switched_while_the_nodes_run(pair, peer, engine):
    stamps, sent, shares = [], {}, []
    for criterion in ('never', 'class_threshold', 'entropy', 'uniform', 'class_threshold', 'never'):
        choose(peer, criterion)
        for seed in (1, 2):
            frame, trace, stamp = check(peer, engine, mixed_image(seed), criterion)
            stamps.append(stamp)
            assert trace['final_source'] == 'refined' and trace['forwarded'] == 'true'
            assert 0 < float(trace['sent_cells']) < 1
            shares.append(float(trace['sent_cells']))
            sent[criterion, seed] = int(trace['feature_bytes'])
            assert frame.kept.any() and not frame.kept.all()
            peer.wait(lambda stamp=stamp: stamp in peer.stamps('refined_mask/compressed'), 'the refined mask')
            refined = mask_of(peer.message('refined_mask/compressed', stamp), WIDTH, HEIGHT, 3)
            np.testing.assert_array_equal(refined, frame.outputs[-1].mask(WIDTH, HEIGHT))
    for topic in ('ee_seg/mask', 'ee_seg/final_mask', 'ee_seg/trace'):
        assert peer.stamps(topic) == stamps, topic
    assert sent['class_threshold', 1] < sent['never', 1] and min(shares) < 0.5


def test_a_frame_all_of_whose_pixels_stop_stays_onboard(pair, peer, engine):
    choose(peer, 'class_threshold')
    frame, trace, _ = check(peer, engine, SURE, 'class_threshold')
    assert (trace['settled'], trace['forwarded'], trace['final_source']) == ('true', 'false', 'onboard')
    assert (trace['stopped_share'], trace['feature_bytes'], float(trace['sent_cells'])) == ('1', '0', 0)
    check(peer, engine, mixed_image(), 'class_threshold')    # and the next one goes on


def test_an_unsettled_frame_without_an_unsure_cell_is_not_forwarded(pair, peer, engine):
    """Not one cell would be sent: its onboard mask is final at once, though `never` settles nothing."""
    choose(peer, 'never')
    extremes = ((np.random.default_rng(seed).integers(0, 2, (HEIGHT, WIDTH, 3)) * 255).astype(np.uint8)
                for seed in range(100))
    image = next(image for image in extremes
                 if len(run_pair(engine, image, 'never', AT_NO_EXIT['never']).sides) == 1)
    _, trace, _ = check(peer, engine, image, 'never')
    assert (trace['settled'], trace['forwarded'], trace['final_source']) == ('false', 'false', 'onboard')


@pytest.mark.parametrize('criterion', ['class_threshold', 'never'])
def test_the_robot_can_finish_by_itself(pair, peer, engine, criterion):
    choose(peer, criterion, finish='onboard')
    frame, trace, stamp = check(peer, engine, mixed_image(), criterion)
    assert len(frame.sides) == 2 and (trace['final_source'], trace['forwarded']) == ('refined', 'false')
    assert stamp not in peer.stamps('refined_mask/compressed')
