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
"""`colcon build`, and the installed executables after sourcing what it made."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Of this interpreter: executables that colcon installs run in colcon's own, which may lack what they need.
COLCON = Path(sys.executable).parent / 'colcon'
pytestmark = pytest.mark.skipif(not COLCON.is_file(), reason='needs colcon: make lint installs it')


def environment(*without):
    """This process's environment without the source tree under test."""
    paths = [path for path in os.environ.get('PYTHONPATH', '').split(os.pathsep) if path and Path(path) != ROOT]
    return {**{key: value for key, value in os.environ.items() if key not in without},
            'PYTHONPATH': os.pathsep.join(paths)}


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """A workspace with this package, built."""
    workspace = tmp_path_factory.mktemp('workspace')
    (workspace / 'src').mkdir()
    (workspace / 'src/ee_seg_ros').symlink_to(ROOT)
    process = subprocess.run([str(COLCON), 'build', '--packages-select', 'ee_seg_ros'], cwd=workspace,
                             env=environment(), capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stdout + process.stderr
    return workspace


@pytest.fixture
def sourced(workspace, tmp_path):
    """Start an installed executable as `ros2 run ee_seg_ros` would, in a shell that sourced the workspace."""
    def start(name, *arguments):
        line = f'. {workspace}/install/setup.sh && exec "$AMENT_PREFIX_PATH/lib/ee_seg_ros/{name}" "$@"'
        return subprocess.Popen(['bash', '-c', line, name, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.STDOUT, env=environment('AMENT_PREFIX_PATH'))
    return start


def test_what_a_robot_needs_is_installed(workspace):
    prefix = workspace / 'install/ee_seg_ros'
    for file in ('lib/ee_seg_ros/onboard', 'lib/ee_seg_ros/offboard', 'share/ee_seg_ros/launch/pair.launch.py',
                 'share/ee_seg_ros/config/onboard.yaml', 'share/ee_seg_ros/bundles/street/bundle.json',
                 'share/ament_index/resource_index/packages/ee_seg_ros', 'share/ee_seg_ros/package.xml'):
        assert (prefix / file).is_file(), file


def test_the_command_line_finds_the_installed_bundle(workspace, sourced):
    process = sourced('ee_seg', 'info', 'street', '--json')
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    found = json.loads(text)
    assert found['name'] == 'street'
    assert str(workspace / 'install') in text


def test_an_installed_node_starts_and_ends(workspace, sourced):
    pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')
    process = sourced('onboard')
    lines = []
    for line in process.stdout:
        lines.append(line)
        if 'bundle street' in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, ''.join(lines) + rest
    assert str(workspace / 'install') in lines[-1] and 'Traceback' not in rest
