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
"""Experts with real nodes: switched while they run; the server takes the one that the message names."""
import json

import numpy as np
import pytest
from harness import pixels
from tiny import HEIGHT, WIDTH, mixed_image, tiny_bundle

from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine

EXPERTS = {'blur': ('exit1', 'exit2', 'final'), 'noise': ('exit2',), 'fog': ('exit1',)}
FORWARDING = {'up_to': 0.4, 'last_exit': 'exit4'}    # of fog; a strength that is not known is 0.5


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    folder = tiny_bundle(tmp_path_factory.mktemp('bundles') / 'expert', experts=EXPERTS)
    document = json.loads((folder / 'bundle.json').read_text())
    document['experts']['fog']['forwarding'] = FORWARDING
    (folder / 'bundle.json').write_text(json.dumps(document))
    return Bundle.load(folder)


@pytest.fixture(scope='module')
def engine(bundle):
    return Engine(bundle, threads=1)


@pytest.fixture(scope='module')
def pair(start, peer, bundle):
    processes = (start('onboard', bundle=bundle.path, criterion='never', deadline_ms=50000),
                 start('offboard', bundle=bundle.path, criterion='never'))
    peer.listen_to_masks()
    peer.wait_for_onboard()
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')

    def refine_one():
        stamp = peer.segment(mixed_image())
        peer.finals([stamp])
        return stamp
    peer.send_until_heard(refine_one, 'refined_mask/compressed')
    yield
    for process in processes:
        assert process.running and 'Traceback' not in process.text, process.text


def masks_of(engine, image, expert, count):
    frame = run_pair(engine, image, 'never', (0.0,) * count, expert=expert)
    return [output.mask(WIDTH, HEIGHT) for output in (frame.sides[0].output, frame.outputs[-1])]


@pytest.mark.parametrize('finish', ['offboard', 'onboard'])
def test_the_expert_is_switched_from_frame_to_frame(pair, peer, engine, finish):
    assert all(accepted for accepted, _ in peer.set(finish=finish))
    image, found = mixed_image(3), {}
    for asked in ('blur', 'off', 'noise', 'auto', 'blur'):
        expert = '' if asked in ('off', 'auto') else asked    # there is no detector
        assert all(accepted for accepted, _ in peer.set(expert=asked))
        stamp = peer.segment(image)
        trace, = peer.finals([stamp])
        assert (trace['expert'], trace['final_source']) == (expert, 'refined')
        assert trace['distortion'] == trace['distortion_level'] == ''
        expected = masks_of(engine, image, expert, len(engine.bundle.judged_exits))
        for topic, mask in zip(('ee_seg/mask', 'ee_seg/final_mask'), expected):
            np.testing.assert_array_equal(pixels(peer.message(topic, stamp)), mask)
        found[expert] = [mask.tobytes() for mask in expected]
    assert len({masks[0] for masks in found.values()}) == 3    # each has its own opinion
    assert found['noise'][1] == found[''][1] != found['blur'][1]    # of noise there is no expert offboard


def test_what_forwarding_does_not_make_better_stays_on_the_robot(pair, peer, engine):
    assert all(accepted for accepted, _ in peer.set(finish='offboard', expert='fog'))
    image = mixed_image(6)
    stamp = peer.segment(image)
    trace, = peer.finals([stamp])
    assert (trace['expert'], trace['settled'], trace['forwarded'], trace['final_source']) == (
        'fog', 'false', 'false', 'onboard')
    frame = run_pair(engine, image, 'never', (0.0,) * len(engine.bundle.judged_exits), expert='fog')
    assert len(frame.sides) == 1
    np.testing.assert_array_equal(pixels(peer.message('ee_seg/final_mask', stamp)), frame.mask(WIDTH, HEIGHT))


def test_an_expert_that_there_is_not_is_refused(pair, peer):
    (accepted, reason), = peer.set(expert='weather')
    assert not accepted and 'bundle expert knows auto, off, blur, noise, fog' in reason


def test_diagnostics_say_who_judged(pair, peer):
    assert all(accepted for accepted, _ in peer.set(expert='noise', finish='offboard'))
    peer.finals([peer.segment(mixed_image(seed)) for seed in (4, 5)])
    peer.wait_for_diagnosis('ee_seg', 'expert', 'noise')
    peer.wait(lambda: all('expert_share.noise' in peer.diagnostics[node][2] for node in ('ee_seg', 'ee_seg_offboard')),
              'the share of an expert')
