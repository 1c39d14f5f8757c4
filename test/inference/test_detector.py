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
"""The detector of distortions: what it looks at, what it refuses, and that it does not waver."""
import shutil

import cv2
import numpy as np
import pytest
from tiny_detector import add_detector

from ee_seg_ros.data.distortions import DISTORTIONS, distort
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.inference import detector as module
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.detector import CROP, Detection, Detector, Watch, features


@pytest.fixture(scope='module')
def street():
    return StreetDrive(2).frame(40).image


@pytest.fixture
def folder(tiny, tmp_path):
    shutil.copytree(tiny.path, tmp_path / 'bundle')
    return tmp_path / 'bundle'


@pytest.fixture
def detector(folder):
    return Detector(Bundle.load(add_detector(folder)))


def test_a_detector_may_say_how_an_image_is_blurred(folder, detector, street):
    assert detector.detect(street).blur is None and not detector.measures_blur
    found = Detector(Bundle.load(add_detector(folder, blur=(2.0, 1.0, 0.5))))
    assert found.measures_blur and found.detect(street).blur == (2.0, 1.0, 0.5)
    large = cv2.resize(street, None, fx=2, fy=2)    # shrunk by a factor of 2 before it is looked at
    assert found.detect(large).blur == (8.0, 4.0, 2.0)


@pytest.mark.parametrize('height, width', [(360, 480), (720, 1280), (374, 1242), (48, 64), (1, 1), (300, 20)])
def test_features_of_any_size_are_finite_and_repeatable(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = features(image, 448, 336)
    assert found.shape == (94,) and found.dtype == np.float32 and np.isfinite(found).all()
    assert np.array_equal(found, features(image, 448, 336))
    assert np.isfinite(features(np.zeros_like(image), 448, 336)).all()


def test_the_spectrum_is_numpys(street):
    grey = cv2.cvtColor(street[:CROP, :CROP], cv2.COLOR_RGB2GRAY)
    expected = np.abs(np.fft.fft2((grey - grey.mean()) * cv2.createHanningWindow((CROP, CROP), cv2.CV_64F))) ** 2
    np.testing.assert_allclose(module._power(grey), expected[:, 1:CROP // 2], rtol=0.02, atol=50)


def test_rings_and_sectors_tell_frequency_and_direction():
    def lost(noise, width, height):
        blurred = cv2.blur(noise, (width, height))
        return (module._spectrum(noise) - module._spectrum(blurred)).reshape(module.RINGS, module.SECTORS)
    noise = np.random.default_rng(0).integers(0, 256, (CROP, CROP), np.uint8)
    both = lost(noise, 3, 3)
    assert np.all(both[-1] > both[0] + 2)    # fine structure goes, coarse structure stays
    across, down = lost(noise, 5, 1)[-2], lost(noise, 1, 5)[-2]
    assert across.argmax() == down.argmin() and down.argmax() == across.argmin() != across.argmax()


def test_large_images_are_judged_at_the_scale_of_the_network(street):
    larger = cv2.resize(street, (1440, 1080), interpolation=cv2.INTER_NEAREST)    # three times: shrinks to the same
    np.testing.assert_allclose(features(larger, 480, 360)[:76], features(street, 480, 360)[:76], atol=1e-4)


def test_it_tells_noise_blur_and_clean(detector, street):
    assert detector.families == ('clean', 'blur', 'noise', 'weather')
    clean = detector.detect(street)
    assert clean.family == 'clean' and clean.level == 0 and clean.ms > 0
    assert sum(clean.probabilities.values()) == pytest.approx(1) and max(
        clean.probabilities, key=clean.probabilities.get) == 'clean'
    blurred, noisy = detector.detect(distort(street, 'blur', 4)), detector.detect(distort(street, 'noise', 40))
    assert (blurred.family, blurred.level) == ('blur', 0.25) and (noisy.family, noisy.level) == ('noise', 0.5)


def test_the_fingerprint_does_not_depend_on_it(tiny, folder):
    assert Bundle.load(add_detector(folder)).fingerprint == tiny.fingerprint


def test_a_bundle_without_one_says_so(tiny):
    assert tiny.detector is None
    with pytest.raises(BundleError, match='no detector of distortions: export it with --detector'):
        Detector(tiny)


def test_features_of_another_version_are_refused(folder):
    with pytest.raises(BundleError, match='features of version 99'):
        Detector(Bundle.load(add_detector(folder, features=99)))


@pytest.mark.parametrize('changes, says', [
    ({'families': ['blur', 'noise']}, 'detector/families'), ({'file': '../detector.onnx'}, 'detector/file'),
    ({'provenance': {}}, 'detector/provenance')])
def test_what_does_not_fit_is_refused_on_load(folder, changes, says):
    with pytest.raises(BundleError, match=says):
        Bundle.load(add_detector(folder, **changes))


def test_a_damaged_graph_is_refused(folder):
    bundle = Bundle.load(add_detector(folder))
    (folder / 'detector.onnx').write_bytes(b'x')
    with pytest.raises(BundleError, match='damaged'):
        Detector(bundle)


class Said:
    """A detector that says what it was told to, in turn."""

    def __init__(self, *families):
        self.families = list(families)

    def detect(self, image):
        return Detection(self.families.pop(0), 0.5, {}, 1.0)


def seen(watch, count):
    return [watch.see(None).family for _ in range(count)]


def test_a_watch_changes_its_mind_only_after_several_looks_that_agree():
    watch = Watch(Said('clean', 'noise', 'clean', 'noise', 'noise', 'blur', 'noise', 'noise', 'noise', 'clean'),
                  patience=3)
    assert seen(watch, 10) == ['clean'] * 8 + ['noise'] * 2


def test_a_watch_believes_its_first_look_and_forgets():
    watch = Watch(Said('blur', 'clean', 'noise'), patience=3)
    assert seen(watch, 2) == ['blur', 'blur']
    watch.forget()
    assert seen(watch, 1) == ['noise']


def test_a_watch_looks_at_every_nth_image():
    said = Said('blur', 'noise', 'noise')
    watch = Watch(said, every=3, patience=2)
    found = [watch.see(None) for _ in range(7)]
    assert [each.family for each in found] == ['blur'] * 6 + ['noise'] and said.families == []
    assert [each.ms > 0 for each in found] == [True, False, False, True, False, False, True]


@pytest.mark.parametrize('name', [name for name in DISTORTIONS if DISTORTIONS[name].family in ('blur', 'noise')])
def test_the_shipped_detector_knows_what_the_paper_distorts(name):
    bundle = Bundle.load('street')
    if bundle.detector is None:
        pytest.skip('the shipped bundle has no detector')
    found = Detector(bundle)
    images = [StreetDrive(seed).frame(seed).image for seed in range(60, 66)]
    level = DISTORTIONS[name].levels[-1]
    assert all(found.detect(distort(image, name, level, 1)).family == DISTORTIONS[name].family for image in images)
