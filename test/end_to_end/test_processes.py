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
"""How the nodes start, what they say when they cannot, and how they end."""
import json
import signal

import cv2
import numpy as np
import pytest
from harness import scene
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState


@pytest.mark.parametrize('node, parameters, hint', [
    ('onboard', {'bundle': 'no_such_bundle'}, "no bundle 'no_such_bundle'"),
    ('offboard', {'bundle': '/tmp'}, 'a folder without bundle.json'),
    ('onboard', {'criterion': 'bogus'}, "criterion is 'bogus': choose one of"),
    ('onboard', {'thresholds': '[0.5]'}, 'one per exit but the last'),
    ('offboard', {'threads': 'many'}, "threads is 'many': expected a whole number from 1 to 64"),
    ('offboard', {'robots': "['a b']"}, 'expected namespaces'),
    ('offboard', {'thresholds': '[0.5]'}, 'one per exit but the last'),
    ('camera', {'source': '/no/such/folder'}, '/no/such/folder'),
    ('recorder', {}, 'out is empty'),
])
def test_what_cannot_work_ends_with_one_clear_line(start, node, parameters, hint):
    process = start(node, **parameters)
    assert process.wait() == 1
    lines = [line for line in process.text.splitlines() if line.strip()]
    errors = [line for line in lines if hint in line]
    assert len(errors) == 1 and 'Traceback' not in process.text, process.text
    assert all('WARN' in line for line in lines if line not in errors), process.text


def test_nodes_end_cleanly_when_told_to(start, peer, tmp_path):
    onboard, offboard = start('onboard', thresholds=[]), start('offboard', robots=[])    # as if they were not given
    camera = start('camera', rate=5.0)
    recorder = start('recorder', out=tmp_path / 'out')
    peer.wait_for_onboard()
    peer.wait(lambda: '"event": "ready"' in recorder.text, 'the recorder')
    peer.wait(lambda: '"event": "progress"' in recorder.text, 'a frame')
    assert camera.end(signal.SIGINT) == 0
    assert recorder.end(signal.SIGTERM) == 0
    assert offboard.end(signal.SIGTERM) == 0
    assert onboard.end(signal.SIGINT) == 0
    for process in (onboard, offboard, camera, recorder):
        assert 'Traceback' not in process.text and 'rror' not in process.text, process.text
    assert (tmp_path / 'out' / 'frames.jsonl').read_text()


def test_a_manager_drives_the_lifecycle(start, peer):
    node = start('onboard', autostart=False, bundle='no_such_bundle', criterion='never')

    def change(transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return peer.call(ChangeState, 'ee_seg/change_state', request).success

    assert not change(Transition.TRANSITION_CONFIGURE)    # and the node stays, for another try
    assert peer.set(bundle='street') == [(True, '')]
    assert change(Transition.TRANSITION_CONFIGURE)
    peer.listen_to_masks()
    for _ in range(2):
        peer.received.clear()
        peer.diagnostics.clear()
        assert change(Transition.TRANSITION_ACTIVATE)
        peer.wait_for_onboard()
        peer.finals([peer.segment(scene(1))])
        assert change(Transition.TRANSITION_DEACTIVATE)
        peer.wait(lambda: peer.images.get_subscription_count() == 0, 'the end of the subscription')
    assert not peer.set(threads=2)[0][0]
    assert change(Transition.TRANSITION_CLEANUP)
    assert peer.set(threads=2) == [(True, '')]
    assert change(Transition.TRANSITION_CONFIGURE) and change(Transition.TRANSITION_ACTIVATE)
    peer.diagnostics.clear()
    peer.received.clear()
    peer.wait_for_onboard()
    peer.finals([peer.segment(scene(1))])
    assert change(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert node.wait() == 0
    assert 'Traceback' not in node.text and node.text.count("no bundle 'no_such_bundle'") == 1, node.text


def test_camera_and_recorder_write_down_what_happened(start, peer, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f'view{index}.png'), scene(30 * index)[..., ::-1])
    (folder / 'view3.png').write_bytes(b'no image')
    onboard = start('onboard', criterion='never', finish='onboard', deadline_ms=20000)
    recorder = start('recorder', out=tmp_path / 'out', frames=5, offboard=False, idle_s=30.0)
    peer.wait(lambda: '"event": "ready"' in recorder.text, 'the recorder')
    camera = start('camera', source=folder, rate=1.0, frames=5, loop=True, frame_id='eye', log=tmp_path / 'log.jsonl')
    assert camera.wait() == 0 and camera.text.count('view3.png') == 1
    assert recorder.wait() == 0, recorder.text
    log = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert [(line['index'], line['name']) for line in log] == [
        (0, 'view0'), (1, 'view1'), (2, 'view2'), (0, 'view0'), (1, 'view1')]
    frames = [json.loads(line) for line in (tmp_path / 'out' / 'frames.jsonl').read_text().splitlines()]
    assert [frame['stamp'] for frame in frames] == [line['stamp'] for line in log]
    for frame in frames:
        assert frame['frame_id'] == 'eye' and frame['trace']['final_source'] == 'refined'
        assert frame['stamp'] < frame['mask_at'] <= frame['final_at'] and frame['refined_at'] is None
    kinds = {kind: [cv2.imread(str(tmp_path / 'out' / f"{kind}_{frame['stamp']}.png"), cv2.IMREAD_UNCHANGED)
                    for frame in frames] for kind in ('mask', 'final')}
    for kind, masks in kinds.items():
        assert all(mask.shape == (180, 240) for mask in masks), kind
        np.testing.assert_array_equal(masks[0], masks[3])    # the same picture, one lap later
        assert (masks[0] != masks[1]).any()
    last = json.loads([line for line in recorder.text.splitlines() if '"done"' in line][0])
    assert (last['masks'], last['final_masks'], last['refined_masks'], last['frames']) == (5, 5, 0, 5)
    assert onboard.end() == 0
