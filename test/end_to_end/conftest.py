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
"""Fixtures of the end-to-end tests. Each module starts its processes once, in a namespace of its own."""
import hashlib
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / 'interfaces')]

import message_build  # noqa: E402
from harness import NodeProcess, Peer  # noqa: E402

from ee_seg_ros.inference.bundle import Bundle  # noqa: E402
from ee_seg_ros.inference.engine import Engine  # noqa: E402


@pytest.fixture(scope='session')
def bundle():
    return Bundle.load('street')


@pytest.fixture(scope='session')
def engine(bundle):
    """The whole model in this process, to compare with."""
    return Engine(bundle, threads=1)


def build_messages(package, config, tmp_path_factory):
    """(folder to import a message package from, or None where it is installed; why it cannot be had, or '')."""
    if importlib.util.find_spec(package):    # a real one wins
        return None, ''
    if os.environ.get('ROS_DISTRO'):
        return None, f"{package} is not installed: ros-{os.environ['ROS_DISTRO']}-{package.replace('_', '-')}"
    import rclpy
    of = [rclpy.__file__, sysconfig.get_config_var('EXT_SUFFIX'), Path(message_build.__file__).read_text()]
    of += [path.read_text() for path in sorted(message_build.SOURCES.rglob('*.msg'))]
    name = f'messages-{hashlib.sha256(repr(of).encode()).hexdigest()[:12]}'
    cache = getattr(config, 'cache', None)    # there is none with -p no:cacheprovider
    folder = Path(cache.mkdir(name)) if cache else tmp_path_factory.getbasetemp() / name
    try:
        message_build.build(package, folder)
    except message_build.BuildError as error:
        return None, str(error)
    return folder, ''


@pytest.fixture(scope='session')
def built_messages(pytestconfig, tmp_path_factory):
    """PACKAGE -> what `build_messages` says of it. Built once per environment, which takes 4 s."""
    return {package: build_messages(package, pytestconfig, tmp_path_factory) for package in message_build.PACKAGES}


@pytest.fixture(scope='module')
def need(built_messages):
    """Skip the test if the package that it asks for cannot be had; those that can are found, by the nodes as well."""
    def need_one(package):
        if built_messages[package][1]:
            pytest.skip(built_messages[package][1])
    folders = sorted({str(folder) for folder, _ in built_messages.values() if folder})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join([*folders, *filter(None, [os.environ.get('PYTHONPATH')])]))
        for folder in folders:
            patch.syspath_prepend(folder)
        yield need_one


@pytest.fixture(scope='module')
def namespace(request):
    return '/' + request.module.__name__.rsplit('.', 1)[-1]


@pytest.fixture(scope='module')
def start(namespace, tmp_path_factory):
    """Start a node of ours by its name, with these parameters; all are gone at the end of the module."""
    folder, processes = tmp_path_factory.mktemp('logs'), []

    def start_one(node, /, **parameters):
        if node in ('onboard', 'offboard'):
            parameters.setdefault('threads', 1)
        if node == 'onboard':    # masks are compared with those of the exits' own heads
            parameters.setdefault('expert', 'off')
        processes.append(NodeProcess(folder / f'{len(processes)}_{node}.log', node, namespace, **parameters))
        return processes[-1]
    yield start_one
    for process in processes:
        process.clean_up()


@pytest.fixture(scope='module')
def peer(namespace):
    """The node in this process."""
    peer = Peer(namespace)
    yield peer
    peer.close()


@pytest.fixture(autouse=True)
def _forget(request):
    """Each test sees only what came during it."""
    if 'peer' in request.fixturenames:
        request.getfixturevalue('peer').received.clear()
    yield
