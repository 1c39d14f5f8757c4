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
"""The launch files at work, where `launch` and `launch_ros` can be imported: from a distribution or by PYTHONPATH."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import PATIENCE, ROOT, Peer, scene
from sensor_msgs.msg import Image

pytest.importorskip('launch', reason='needs launch, of a ROS 2 distribution')
pytest.importorskip('launch_ros', reason='needs launch_ros, of a ROS 2 distribution')

# What `ros2 launch` does, for several files at once.
LAUNCH = """
import json, sys
from launch import LaunchDescription, LaunchService
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService(noninteractive=True)
service.include_launch_description(LaunchDescription([
    GroupAction([IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=arguments.items())])
    for path, arguments in json.loads(sys.argv[1])]))
sys.exit(service.run())
"""


@pytest.fixture(scope='module')
def prefix(tmp_path_factory):
    """The package as colcon would install it, in links to the source tree."""
    prefix = tmp_path_factory.mktemp('install')
    share, programs = prefix / 'share/ee_seg_ros', prefix / 'lib/ee_seg_ros'
    for folder in (share, programs, prefix / 'share/ament_index/resource_index/packages'):
        folder.mkdir(parents=True)
    (prefix / 'share/ament_index/resource_index/packages/ee_seg_ros').touch()
    for name in ('launch', 'config', 'package.xml'):
        (share / name).symlink_to(ROOT / name)
    for name in ('onboard', 'offboard', 'ground', 'camera'):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m ee_seg_ros.nodes {name} "$@"\n')
        (programs / name).chmod(0o755)
    return prefix


@pytest.fixture
def launch(prefix, tmp_path):
    """Start pairs of a launch file's name and its arguments, all in one process, whose output is in a file."""
    processes = []

    def start(*files):
        prefixes = [str(prefix), *filter(None, [os.environ.get('AMENT_PREFIX_PATH')])]
        environment = dict(os.environ, PYTHONUNBUFFERED='1', ROS_LOG_DIR=str(tmp_path),
                           AMENT_PREFIX_PATH=os.pathsep.join(prefixes))
        paths = [(str(prefix / f'share/ee_seg_ros/launch/{name}.launch.py'), arguments) for name, arguments in files]
        with open(tmp_path / 'launch.log', 'wb') as log:
            processes.append(subprocess.Popen([sys.executable, '-c', LAUNCH, json.dumps(paths)], env=environment,
                                              stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path))
        processes[-1].text = (tmp_path / 'launch.log').read_text
        return processes[-1]
    yield start
    for process in processes:
        for pid in children(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def children(parent):
    """{process id: command line} of the processes that a process has started, and that run."""
    found = {}
    for path in Path('/proc').glob('[0-9]*'):
        try:
            state, ppid = (path / 'stat').read_text().rpartition(')')[2].split()[:2]
            if int(ppid) == parent and state != 'Z':
                found[int(path.name)] = (path / 'cmdline').read_text()
        except OSError:    # it has ended
            continue
    return found


def pid_of(process, node):
    found = [pid for pid, command in children(process.pid).items() if f'ee_seg_ros.nodes\0{node}\0' in command]
    return found[0] if found else None


@pytest.fixture
def robots():
    peers = [Peer(f'/launched_{number}') for number in range(2)]
    yield peers
    for peer in peers:
        peer.close()


def test_the_pair_comes_again_when_it_is_killed_and_ends_with_the_launch(launch, robots):
    peer = robots[0]
    process = launch(('pair', {'namespace': '/launched_0', 'camera': 'false', 'image': 'front/image',
                               'bundle': 'street', 'log_level': 'warn', 'local': 'true'}))
    peer.images = peer.node.create_publisher(Image, 'front/image', 5)
    peer.listen_to_masks()
    peer.wait_for_onboard()
    peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
    for node in ('onboard', 'offboard'):
        first = pid_of(process, node)
        os.kill(first, signal.SIGKILL)
        peer.wait(lambda: pid_of(process, node) not in (None, first), f'another {node} node')
        peer.diagnostics.clear()
        peer.wait_for_onboard()
        peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
    peer.send_until_heard(lambda: peer.show(scene(0)), 'ee_seg/final_mask')
    started = list(children(process.pid))
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    assert len(started) == 2 and not any(Path(f'/proc/{pid}').exists() for pid in started)
    assert 'Traceback' not in process.text()


def test_two_robots_share_a_server(launch, robots):
    launch(('onboard', {'namespace': 'launched_0'}), ('onboard', {'namespace': 'launched_1'}),
           ('offboard', {'namespace': 'server', 'robots': '/launched_0,/launched_1'}))
    for peer in robots:
        peer.listen_to_masks()
        peer.wait_for_onboard()
        peer.wait_for_diagnosis('ee_seg', 'offboard_present', 'true')
        peer.set(criterion='never')
    for peer in robots:
        peer.send_until_heard(lambda peer=peer: peer.show(scene(0)), 'refined_mask/compressed')


@pytest.mark.parametrize('name, arguments, says', [
    ('onboard', {'params_file': '/nowhere.yaml'}, 'params_file /nowhere.yaml is no file: give a ROS parameter file'),
    ('pair', {'respawn': 'maybe'}, "Valid options are: ['true', 'false']"),
    ('offboard', {'bundle': '2024', 'respawn': 'false'}, "no bundle '2024'"),
    ('onboard', {'autostart': 'false'}, 'waiting for a lifecycle manager'),
    ('demo', {'rviz': 'false', 'source': '/nowhere'}, "no source '/nowhere'"),
    ('demo', {'rviz': 'false', 'bundle': '/nowhere'}, "[ground]: cannot start: no bundle '/nowhere'"),
])
def test_what_is_wrong_is_said(launch, name, arguments, says):
    process = launch((name, arguments))
    deadline = time.monotonic() + PATIENCE
    while says not in process.text():
        assert time.monotonic() < deadline, process.text()
        time.sleep(0.05)
