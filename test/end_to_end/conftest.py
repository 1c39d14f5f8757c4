# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests. Each module starts its processes once, in a namespace of its own."""
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')
sys.path.insert(0, str(Path(__file__).parent))

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
