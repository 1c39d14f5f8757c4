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
"""The environment variables that ROS processes want: the Fast DDS profile, and traffic that stays on this machine.

They count only where they are set before a process creates its first ROS context.
"""
import os
import sys
from pathlib import Path

# With Fast DDS 2. Everything later, and the ROS 2 wheels of pip (which set no ROS_DISTRO), has Fast DDS 3.
FAST_DDS_2 = ('humble', 'iron', 'jazzy')


def config_folder() -> Path:
    """The package's folder `config`: in the source tree, an ament prefix or the Python prefix, whichever is first."""
    prefixes = [prefix for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if prefix]
    folders = [Path(__file__).resolve().parents[1] / 'config']
    folders += [Path(prefix) / 'share' / 'ee_seg_ros' / 'config' for prefix in prefixes + [sys.prefix]]
    for folder in folders:
        if (folder / 'fastdds.xml').is_file():
            return folder
    raise FileNotFoundError(f'no Fast DDS profile in {", ".join(map(str, folders))}: install ee_seg_ros again')


def fastdds_profile(udp_only: bool = False) -> dict:
    """The variable that names the shipped Fast DDS profile, as {name: path}.

    Each version of Fast DDS reads a variable of its own, wants other tag names in the file, and complains about the
    file of the other version. So exactly one variable is given: the one of the ROS 2 distribution in use.
    udp_only: the profile without shared memory, for a link between network namespaces.
    """
    name = 'fastrtps' if os.environ.get('ROS_DISTRO') in FAST_DDS_2 else 'fastdds'
    path = config_folder() / f'{name}{"_udp" if udp_only else ""}.xml'
    return {f'{name.upper()}_DEFAULT_PROFILES_FILE': str(path)}


def local_range() -> dict:
    """The variable that keeps discovery and traffic on this machine, as {name: value}."""
    if os.environ.get('ROS_DISTRO') == 'humble':  # has no other; later distributions deprecate it
        return {'ROS_LOCALHOST_ONLY': '1'}
    return {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
