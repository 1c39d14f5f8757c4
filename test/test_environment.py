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
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ee_seg_ros.environment import config_folder, fastdds_profile, local_range

# Fast DDS 3 -> 2
RENAMED = {'heartbeat_period': 'heartbeatPeriod', 'nack_response_delay': 'nackResponseDelay',
           'heartbeat_response_delay': 'heartbeatResponseDelay'}


@pytest.mark.parametrize('distribution, variable, file', [
    ('humble', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'fastrtps'), ('jazzy', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'fastrtps'),
    ('kilted', 'FASTDDS_DEFAULT_PROFILES_FILE', 'fastdds'), (None, 'FASTDDS_DEFAULT_PROFILES_FILE', 'fastdds')])
def test_each_version_of_fast_dds_gets_its_own_profile_and_no_other(monkeypatch, distribution, variable, file):
    monkeypatch.delenv('ROS_DISTRO', raising=False)
    if distribution:
        monkeypatch.setenv('ROS_DISTRO', distribution)
    assert fastdds_profile() == {variable: str(config_folder() / f'{file}.xml')}
    assert fastdds_profile(udp_only=True) == {variable: str(config_folder() / f'{file}_udp.xml')}


def test_only_humble_gets_the_variable_that_later_distributions_deprecate(monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', 'humble')
    assert local_range() == {'ROS_LOCALHOST_ONLY': '1'}
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    assert local_range() == {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}


def flat(path):
    """Tags and texts of an XML file in document order, without namespaces and comments."""
    return [(element.tag.rpartition('}')[2], (element.text or '').strip(), element.attrib)
            for element in ElementTree.parse(path).iter()]


@pytest.mark.parametrize('suffix', ['', '_udp'])
def test_both_versions_of_a_profile_say_the_same(suffix):
    three, two = (flat(config_folder() / f'{name}{suffix}.xml') for name in ('fastdds', 'fastrtps'))
    assert [(RENAMED.get(tag, tag), text, attributes) for tag, text, attributes in three] == two
    kinds = [text for tag, text, _ in three if tag == 'type']
    assert kinds == (['UDPv4'] if suffix else ['SHM', 'UDPv4'])


def test_processes_that_tests_start_in_another_folder_import_this_tree_and_ros(tmp_path):
    pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')
    code = 'import os, ee_seg_ros, rclpy; print(ee_seg_ros.__file__, os.environ["ROS_DOMAIN_ID"], sep="\\n")'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    package, domain = done.stdout.splitlines()
    assert Path(package).parents[1] == Path(__file__).resolve().parents[1]
    assert domain == os.environ['ROS_DOMAIN_ID'] and 1 <= int(domain) <= 100
