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
"""The demo and the bench with their real processes, small; and what happens when one of these dies."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from ee_seg_ros import demo
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.processes import ChildError, Children

pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')
pytest.importorskip('typer', reason='typer is not installed (extra `demo`)')
pytest.importorskip('matplotlib', reason='matplotlib is not installed (extra `demo`)')

NODES = {'camera', 'offboard', 'onboard', 'recorder'}
PATIENCE = 120.0    # seconds until a wait gives up


def state_of(pid):
    """(state, parent) of a process, or (None, None) if there is none."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None, None


def alive(pid):
    return state_of(pid)[0] not in (None, 'Z')


def nodes_of(parent):
    """{name: process id} of the nodes that a process has started."""
    found = {}
    for pid in (int(path.name) for path in Path('/proc').glob('[0-9]*')):
        if alive(pid) and state_of(pid)[1] == str(parent):
            command = Path(f'/proc/{pid}/cmdline').read_text().split('\0')
            found.update({name: pid for module, name in zip(command, command[1:]) if module == 'ee_seg_ros.nodes'})
    return found


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f'{what} did not happen'
        time.sleep(0.05)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Six small labelled images in CamVid's layout: easy ones of one drive."""
    root = tmp_path_factory.mktemp('data')
    for kind in ('images', 'labels'):
        (root / kind / 'val').mkdir(parents=True)
    drive = StreetDrive(5, 240, 180)
    for index in range(6):
        scene = drive.frame(index)
        cv2.imwrite(str(root / 'images/val' / f'{index}.png'), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        cv2.imwrite(str(root / 'labels/val' / f'{index}.png'), scene.labels)
    return root / 'images' / 'val'


@pytest.fixture(scope='module')
def bag(images, tmp_path_factory):
    """The same images and labels as a bag."""
    bagging = pytest.importorskip('bagging')
    topics = {'/camera/image': [], '/camera/labels': []}
    for index in range(6):
        image = cv2.imread(str(images / f'{index}.png'))
        labels = cv2.imread(str(images.parents[1] / 'labels/val' / f'{index}.png'), cv2.IMREAD_UNCHANGED)
        topics['/camera/image'].append(bagging.raw(index, image, 'bgr8'))
        topics['/camera/labels'].append(bagging.raw(index, labels[..., None], 'mono8'))
    return bagging.write(tmp_path_factory.mktemp('bags') / 'drive', topics)


@pytest.fixture(scope='module')
def done(bag, tmp_path_factory):
    """A demo of a bag in which no frame settles: (completed process, folder).

    The rate is one that a busy machine keeps up with, too.
    """
    out = tmp_path_factory.mktemp('demo') / 'out'
    (out / 'recording').mkdir(parents=True)
    (out / 'recording/mask_1.png').write_text('of an earlier run')
    (out / 'drive.gif').write_text('of an earlier run')
    (out / 'recording/mine.txt').write_text('not ours')
    command = [sys.executable, '-m', 'ee_seg_ros.cli', 'demo', '--source', f'{bag}:/camera/image', '--frames', '50',
               '--rate', '1.5', '--criterion', 'never', '--distort', 'noise:10', '--out', str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE), out


def test_the_demo_succeeds_and_says_what_it_measured(done):
    process, out = done
    assert process.returncode == 0, process.stderr + process.stdout
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['frames'] == 6 and summary['dropped'] == 0    # the bag is shorter than --frames
    assert summary['masks'] == summary['final_masks'] == 6
    assert 1 <= summary['refined_masks'] <= 6    # on a busy machine some come too late to be recorded
    assert summary['exit_shares'] == [0] * len(Bundle.load('street').onboard_exits) + [1]
    assert summary['forwarded_share'] == 1
    assert 0 < summary['mask_ms']['p50'] <= summary['mask_ms']['p95']
    assert summary['refined_ms']['p50'] > summary['mask_ms']['p50']
    assert summary['bytes_per_forwarded_frame'] > 1000 and summary['jpeg_bytes'] > summary['webp_bytes'] > 1000
    assert {'mask', 'refined', 'final'} == set(summary['miou'])
    assert all(0.1 < value < 1 for value in summary['miou'].values())
    assert summary['distort'] == 'noise:10'
    assert summary['criterion'] == 'never' and sum(summary['final_sources'].values()) == pytest.approx(1)
    assert 'image to refined mask' in process.stdout and 'final masks: 6 of 6' in process.stdout


def test_the_sheet_and_the_recording_are_there(done):
    _, out = done
    assert cv2.imread(str(out / 'contact_sheet.png')).shape[1] > 1000
    from PIL import Image
    with Image.open(out / 'drive.gif') as drive:
        assert drive.n_frames == 6 and drive.info['duration'] == pytest.approx(1000 / 1.5, abs=10)
    assert len((out / 'recording/frames.jsonl').read_text().splitlines()) == 6
    assert not (out / 'recording/mask_1.png').exists() and (out / 'recording/mine.txt').exists()
    assert {path.stem for path in (out / 'logs').glob('*.log')} == NODES


def test_ctrl_c_ends_all_nodes(tmp_path):
    command = [sys.executable, '-m', 'ee_seg_ros.cli', 'demo', '--frames', '10000', '--out', str(tmp_path)]
    process, nodes = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), {}
    try:
        wait_until(lambda: (tmp_path / 'recording/camera.jsonl').is_file() or process.poll() is not None, 'the camera')
        nodes = nodes_of(process.pid)
        assert set(nodes) == NODES
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode != 0 and 'Traceback' not in text
        assert not any(alive(pid) for pid in nodes.values())
    finally:
        process.kill()
        for pid in filter(alive, nodes.values()):
            os.kill(pid, signal.SIGKILL)


def options(out):
    return demo.DemoOptions('scenes', 200, 20.0, 'street', 'always', 'balanced', out)


def test_a_node_that_dies_stops_the_demo_with_its_last_words(tmp_path):
    """The onboard node is killed as soon as the first masks have come."""
    nodes = {}

    def kill(event):
        if event.get('masks') and not nodes:
            nodes.update(nodes_of(os.getpid()))
            os.kill(nodes['onboard'], signal.SIGKILL)

    bundle, _, count = demo.check(options(tmp_path))
    with pytest.raises(ChildError, match=r'onboard was ended by signal 9 too early; the end of .*onboard.log'):
        demo.run_nodes(options(tmp_path), bundle, count, kill, print)
    assert set(nodes) == NODES and not any(alive(pid) for pid in nodes.values())


def test_a_node_that_cannot_start_says_why(tmp_path):
    with Children(tmp_path / 'logs', 99) as children:
        recorder = children.start('recorder', {'out': ''}, listen=True)
        with pytest.raises(ChildError, match=r'recorder ended with status 1 too early(.|\n)*give the folder'):
            children.wait_for(recorder, 'ready', PATIENCE)


def test_the_bench_of_the_runtime(images, tmp_path):
    command = [sys.executable, '-m', 'ee_seg_ros.cli', 'bench', 'runtime', '--limit', '6', '--out', str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / 'runtime.json').read_text())
    assert set(found['claims']) == {'node_over_bare_runtime', 'postprocess_ms', 'onboard_rss_mb', 'first_mask_s'}
    assert all(value > 0 for value in found['claims'].values())
    # On a busy machine the engine may miss a turn.
    assert 1 <= sum(row['images'] for row in found['rows']) <= 6
    assert found['images'] == 6 and found['machine']['cores'] > 0
