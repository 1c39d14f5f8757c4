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
"""The shipped bundle and one run of it, and tiny bundles of other shapes, shared by the tests of the engine."""
import numpy as np
import pytest
from tiny import HEIGHT, WIDTH, mixed_image, tiny_bundle

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


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    """A tiny bundle: two exits onboard, two and the final one behind the split."""
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'tiny'))


@pytest.fixture(scope='session')
def unsplit(tmp_path_factory):
    """A tiny bundle of five exits without a split."""
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'unsplit', split=None))


@pytest.fixture(scope='session')
def single(tmp_path_factory):
    """A tiny bundle with a single exit."""
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'single', split=None, exits=('final',)))


@pytest.fixture(scope='session')
def windowed(tmp_path_factory):
    """As `tiny`, but later stages can run in windows, and settled cells stay behind."""
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp('bundles') / 'windowed', cells=True))


@pytest.fixture(scope='session')
def mixed():
    """An image of that size; by `class_threshold` its upper half is left behind exit1, and less behind exit2."""
    return mixed_image()


@pytest.fixture(scope='session')
def noise():
    """An image of the tiny bundles' size."""
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
