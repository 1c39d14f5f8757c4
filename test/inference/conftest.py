# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The shipped bundle and one run of it, shared by the tests of the engine."""
import pytest

from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine


@pytest.fixture(scope='session')
def bundle():
    return Bundle.load('street')


@pytest.fixture(scope='session')
def engine(bundle):
    return Engine(bundle, threads=2)


@pytest.fixture(scope='session')
def image():
    return StreetDrive(seed=3).frame(5).image


@pytest.fixture(scope='session')
def result(engine, image):
    return engine.segment(image, 'never')


@pytest.fixture(scope='session')
def features(engine, result):
    return engine.encode(result)
