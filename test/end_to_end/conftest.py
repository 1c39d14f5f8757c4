# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
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


@pytest.fixture(scope='session')
def built_interfaces(pytestconfig, tmp_path_factory):
    """PACKAGE -> folder to import it from, None where it is installed. Built once per environment, which takes 4 s.

    Skips, with the reason, where a package is neither installed nor can be built.
    """
    folders = {}
    for package in message_build.PACKAGES:
        if importlib.util.find_spec(package):    # a real one wins
            folders[package] = None
            continue
        if os.environ.get('ROS_DISTRO'):
            pytest.skip(f"{package} is not installed: apt install ros-{os.environ['ROS_DISTRO']}-"
                        + package.replace('_', '-'))
        import rclpy
        of = [rclpy.__file__, sysconfig.get_config_var('EXT_SUFFIX'), Path(message_build.__file__).read_text()]
        of += [path.read_text() for path in sorted(message_build.SOURCES.rglob('*.msg'))]
        cache = getattr(pytestconfig, 'cache', None)    # there is none with -p no:cacheprovider
        name = f'interfaces-{hashlib.sha256(repr(of).encode()).hexdigest()[:12]}'
        folder = Path(cache.mkdir(name)) if cache else tmp_path_factory.mktemp(name)
        try:
            message_build.build(package, folder)
        except message_build.BuildError as error:
            pytest.skip(str(error))
        folders[package] = folder
    return folders


@pytest.fixture(scope='module')
def with_interfaces(built_interfaces):
    """vision_msgs and tf2_msgs can be imported, here and in the processes that are started."""
    folders = sorted({str(folder) for folder in built_interfaces.values() if folder})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join([*folders, *filter(None, [os.environ.get('PYTHONPATH')])]))
        for folder in folders:
            patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope='module')
def namespace(request):
    return '/' + request.module.__name__.rsplit('.', 1)[-1]


@pytest.fixture(scope='module')
def start(namespace, tmp_path_factory):
    """Start a node of ours: start(node, **parameters); all are gone at the end of the module."""
    folder, processes = tmp_path_factory.mktemp('logs'), []

    def start_one(node, /, **parameters):
        if node in ('onboard', 'offboard'):
            parameters.setdefault('threads', 1)
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
