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
"""Exits behind the split: the server, or the robot in its place, stops at the one that settles."""
import numpy as np
import pytest
from harness import pixels
from tiny import HEIGHT, WIDTH, tiny_bundle

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.nodes.conversions import mask_of

AT_EXIT3 = {'criterion': 'entropy', 'thresholds': [0.0, 0.0, 2.0, 0.0]}    # settles never onboard, always at exit3


@pytest.fixture(scope='module')
def image():
    return np.random.default_rng(4).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'tiny'))


@pytest.fixture(scope='module')
def expected(tiny, image):
    """The mask of each exit, computed in this process; no two of them are the same."""
    masks = {exit_.name: Engine(tiny).run_exit(image, exit_.name).output.mask(WIDTH, HEIGHT) for exit_ in tiny.exits}
    assert len({mask.tobytes() for mask in masks.values()}) == len(masks)
    return masks


@pytest.fixture(scope='module')
def pair(start, peer, tiny, image):
    processes = (start('onboard', bundle=tiny.path, deadline_ms=50000, **AT_EXIT3),
                 start('offboard', bundle=tiny.path, **AT_EXIT3))
    peer.listen_to_masks()
    peer.wait_for_onboard()
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
    peer.send_until_heard(lambda: refined(peer, image), 'refined_mask/compressed')
    yield processes
    for process in processes:
        assert process.running and 'Traceback' not in process.text, process.text


def refined(peer, image):
    """Show an image and wait for its final mask, which was refined; its stamp."""
    stamp = peer.segment(image)
    trace, = peer.finals([stamp])
    assert (trace['exit'], trace['settled'], trace['final_source']) == ('exit2', 'false', 'refined')
    return stamp


def final_mask(peer, stamp):
    return pixels(peer.message('ee_seg/final_mask', stamp))


def test_the_server_stops_at_the_exit_that_settles(pair, peer, image, expected):
    stamp = refined(peer, image)
    np.testing.assert_array_equal(pixels(peer.message('ee_seg/mask', stamp)), expected['exit2'])
    peer.wait(lambda: stamp in peer.stamps('refined_mask/compressed'), 'the refined mask')
    received = mask_of(peer.message('refined_mask/compressed', stamp), WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(received, expected['exit3'])
    np.testing.assert_array_equal(final_mask(peer, stamp), expected['exit3'])
    peer.wait_for_diagnosis('ee_seg_offboard', 'exit_share.exit3', '1')


@pytest.mark.parametrize('values, exit_name', [
    ({'thresholds': [0.0, 0.0, 0.0, 2.0]}, 'exit4'), ({'criterion': 'never'}, 'final'),
    ({'criterion': 'region', 'thresholds': [0.0] * 3 + [99.0]}, 'exit4'),
    ({'criterion': 'region', 'thresholds': [99.0] * 4}, 'exit3')])    # compared with the last exit onboard
def test_its_criterion_is_live(pair, peer, image, expected, values, exit_name):
    assert all(accepted for accepted, _ in peer.set('ee_seg_offboard', **values))
    np.testing.assert_array_equal(final_mask(peer, refined(peer, image)), expected[exit_name])
    peer.wait(lambda: float(peer.diagnostics['ee_seg_offboard'][2].get(f'exit_share.{exit_name}', 0)) > 0,
              f'{exit_name} in /diagnostics')
    peer.set('ee_seg_offboard', **AT_EXIT3)


def test_it_refuses_parameters_that_do_not_fit(pair, peer, image, expected):
    results = peer.set('ee_seg_offboard', thresholds=[0.5], criterion='bogus', operating_point='best')
    for (accepted, reason), hint in zip(results, ('one per exit but the last (exit1, exit2, exit3, exit4)',
                                                  'choose one of entropy', 'choose one of fast')):
        assert not accepted and hint in reason, reason
    for node in ('ee_seg', 'ee_seg_offboard'):    # this bundle does not say when a pixel is settled
        (accepted, reason), = peer.set(node, criterion='class_threshold')
        assert not accepted and "no criterion 'class_threshold': choose one of entropy" in reason, reason
    np.testing.assert_array_equal(final_mask(peer, refined(peer, image)), expected['exit3'])


def test_the_rest_stops_there_onboard_as_well(pair, peer, image, expected):
    peer.set(finish='onboard')
    stamp = refined(peer, image)
    assert peer.trace(stamp)['forwarded'] == 'false'
    np.testing.assert_array_equal(final_mask(peer, stamp), expected['exit3'])
    peer.set(criterion='never')
    np.testing.assert_array_equal(final_mask(peer, refined(peer, image)), expected['final'])
