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
import cv2
import numpy as np
import pytest

from ee_seg_ros.data.distortions import (
    DISTORTIONS,
    FAMILIES,
    blur_kernel,
    blur_of,
    distort,
    motion_kernel,
    parse_distortion,
    random_distortion,
    street_depth,
)
from ee_seg_ros.data.scenes import StreetDrive

EVERY = [(name, level) for name, distortion in DISTORTIONS.items() for level in distortion.levels]


@pytest.fixture(scope='module')
def image():
    return StreetDrive(4).frame(10).image


def change(image, name, level, seed=0):
    """Root mean square change of the grey levels."""
    return float(np.sqrt(np.mean((distort(image, name, level, seed).astype(float) - image) ** 2)))


@pytest.mark.parametrize('name', DISTORTIONS)
def test_a_blur_is_what_becomes_of_a_point(name):
    point, levels = np.zeros((91, 91, 3), np.uint8), DISTORTIONS[name].levels
    point[45, 45] = 255
    for level in levels[:3]:
        found = blur_of(name, level, 7)
        if DISTORTIONS[name].family != 'blur':
            assert not found.any()
            continue
        spread = distort(point, name, level, 7)[..., 0].astype(float)
        down, right = np.indices(spread.shape) - 45
        seen = [(spread * across).sum() / spread.sum() for across in (right * right, down * down, right * down)]
        np.testing.assert_allclose(found, seen, atol=0.35, rtol=0.15)    # light below half a grey level is lost


def test_what_is_there():
    assert FAMILIES == ('clean', 'blur', 'noise', 'weather')
    assert {name: distortion.family for name, distortion in DISTORTIONS.items()} == {
        'blur': 'blur', 'motion': 'blur', 'noise': 'noise', 'dark': 'noise', 'fog': 'weather', 'rain': 'weather'}
    assert DISTORTIONS['blur'].levels == (1, 2, 3, 4, 5) and DISTORTIONS['noise'].levels == (5, 10, 20, 30, 40)
    for distortion in DISTORTIONS.values():
        assert len(distortion.levels) >= 4 and list(distortion.levels) == sorted(distortion.levels)


@pytest.mark.parametrize('name', DISTORTIONS)
def test_the_same_seed_gives_the_same_image_and_leaves_the_input_alone(image, name):
    before, level = image.copy(), DISTORTIONS[name].levels[1]
    first = distort(image, name, level, 7)
    assert first.shape == image.shape and first.dtype == np.uint8
    assert np.array_equal(first, distort(image, name, level, 7)) and np.array_equal(image, before)
    assert np.array_equal(first, distort(image, name, level, 8)) == (name == 'blur')    # the only one without chance


@pytest.mark.parametrize('name', DISTORTIONS)
def test_higher_levels_change_more(image, name):
    changes = [change(image, name, level) for level in DISTORTIONS[name].levels]
    assert changes == sorted(changes) and changes[0] > 1 and changes[-1] > 1.3 * changes[0]


@pytest.mark.parametrize('shape', [(360, 480, 3), (37, 50, 3), (720, 1280, 3)])
def test_any_size_and_levels_in_between(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for name, distortion in DISTORTIONS.items():
        assert distort(picture, name, (distortion.levels[0] + distortion.levels[1]) / 2).shape == shape


def test_clean_changes_nothing(image):
    assert np.array_equal(distort(image, 'clean', 0), image)


@pytest.mark.parametrize('sigma', DISTORTIONS['blur'].levels)
def test_blur_is_the_papers(image, sigma):
    kernel = blur_kernel(sigma)
    assert len(kernel) == 4 * sigma + 1
    expected = np.exp(-np.arange(-2 * sigma, 2 * sigma + 1) ** 2 / (2 * sigma ** 2))
    np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-6)
    exact = cv2.sepFilter2D(image.astype(np.float64), -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(distort(image, 'blur', sigma) - exact).max() <= 1    # OpenCV's own is in fixed point


def test_noise_has_its_sigma_and_is_clipped():
    grey = np.full((200, 200, 3), 128, np.uint8)
    for sigma in DISTORTIONS['noise'].levels:
        assert np.std(distort(grey, 'noise', sigma).astype(float)) == pytest.approx(sigma, rel=0.03)
    for value in (0, 255):    # a cast that wraps would put values at the other end
        noisy = distort(np.full_like(grey, value), 'noise', 40).astype(int)
        assert np.abs(noisy - value).max() < 255 and np.mean(noisy == value) == pytest.approx(0.5, abs=0.02)


def test_motion_is_a_line_of_its_length():
    kernel = motion_kernel(9, 0.0)
    assert kernel.sum() == pytest.approx(1)
    assert np.flatnonzero(kernel.sum(0) > 1e-3).size == 9 and np.flatnonzero(kernel.sum(1)).size == 1
    upright = motion_kernel(9, np.pi / 2)
    np.testing.assert_allclose(upright, kernel.T, atol=1e-6)


def test_darkness_takes_light_and_adds_noise(image):
    smooth = np.full((100, 100, 3), 120, np.uint8)
    spread = []
    for stops in DISTORTIONS['dark'].levels:
        dark = distort(smooth, 'dark', stops).astype(float)
        spread.append(dark.std() / dark.mean())
    assert spread == sorted(spread)
    means = [distort(image, 'dark', stops).mean() for stops in DISTORTIONS['dark'].levels]
    assert means == sorted(means, reverse=True) and means[0] < 0.8 * image.mean()


def test_fog_hides_what_is_far():
    depth = street_depth(360, 480)
    assert depth[-1, 240] < 5 < 40 < depth[170, 240]    # in front of the camera, down the street
    stripes = np.tile(np.uint8([[[0] * 3, [255] * 3]]), (360, 240, 1))
    foggy = distort(stripes, 'fog', 40).astype(int)
    contrast = np.abs(np.diff(foggy[..., 0], axis=1))
    assert contrast[340:, 200:280].min() > 150 and contrast[160:165, 230:250].max() < 30


def test_more_rain_adds_drops():
    black = np.zeros((360, 480, 3), np.uint8)
    light, heavy = (distort(black, 'rain', rate, 3).astype(int)[..., 0] for rate in (5, 50))
    wet = [np.mean(image > image.min() + 30) for image in (light, heavy)]
    assert 0.002 < wet[0] < wet[1] < 0.5
    assert np.all(heavy[light > light.min() + 30] > light.min())


@pytest.mark.parametrize('text, expected', [
    ('noise:20', ('noise', 20)), ('blur:1.5', ('blur', 1.5)), ('clean', ('clean', 0)), ('', ('clean', 0))])
def test_parsing(text, expected):
    assert parse_distortion(text) == expected


@pytest.mark.parametrize('text, says', [
    ('snow:3', "no distortion 'snow:3'.*blur, motion, noise"),
    ('noise', 'no level.*noise:LEVEL.*5, 10, 20'),
    ('noise:loud', "level 'loud'.*positive number"),
    ('noise:-1', "level '-1'"), ('noise:0', "level '0'"), ('noise:nan', "level 'nan'"),
    ('clean:1', "no distortion 'clean:1'")])
def test_what_cannot_be_parsed_is_explained(text, says):
    with pytest.raises(ValueError, match=says):
        parse_distortion(text)


@pytest.mark.parametrize('name, level', [('fog', 0), ('fog', float('inf')), ('snow', 1)])
def test_wrong_levels_and_names_are_explained(image, name, level):
    with pytest.raises(ValueError, match='expected'):
        distort(image, name, level)


def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match='uint8'):
        distort(image.astype(np.float32), 'blur', 1)


def test_random_distortions_cover_their_family():
    rng = np.random.default_rng(0)
    assert random_distortion(rng, 'clean') == ('clean', 0)
    for family in FAMILIES[1:]:
        drawn = [random_distortion(rng, family) for _ in range(200)]
        assert {name for name, _ in drawn} == {n for n, one in DISTORTIONS.items() if one.family == family}
        for name, level in drawn:
            assert DISTORTIONS[name].levels[0] <= level <= DISTORTIONS[name].levels[-1]
    with pytest.raises(ValueError, match='no family'):
        random_distortion(rng, 'snow')
