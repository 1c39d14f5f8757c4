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
"""Blur that is taken back: nearer to the sharp image than the blurred one, and nothing else changed."""
import numpy as np
import pytest

from ee_seg_ros.data.distortions import DISTORTIONS, blur_of, distort
from ee_seg_ros.data.scenes import StreetDrive
from ee_seg_ros.inference.deblur import deblurred, lens_and_motion

SETTINGS = [(name, level) for name in ('blur', 'motion') for level in DISTORTIONS[name].levels]


@pytest.fixture(scope='module')
def sharp():
    return StreetDrive(seed=5, width=320, height=240).frame(3).image


def error(image, truth, band):
    """Root mean square of the difference in light, over frequencies up to `band` cycles per pixel."""
    light = (image.astype(float) - truth.astype(float)).mean(2)
    spectrum = np.fft.fft2(light)
    down, right = np.fft.fftfreq(light.shape[0])[:, None], np.fft.fftfreq(light.shape[1])
    spectrum[np.hypot(down, right) > band] = 0
    return np.sqrt((np.abs(np.fft.ifft2(spectrum)) ** 2).mean())


@pytest.mark.parametrize('name, level', SETTINGS)
def test_what_was_blurred_is_nearer_to_the_truth(sharp, name, level):
    """Most where little was lost, and there twice as near or more."""
    blurred = distort(sharp, name, level, seed=7)
    blur = blur_of(name, level, seed=7)
    back = deblurred(blurred, blur)
    assert back.dtype == np.uint8 and back.shape == sharp.shape
    reach = np.sqrt(blur[:2].max())
    assert error(back, sharp, 0.2 / reach) < 0.6 * error(blurred, sharp, 0.2 / reach)
    assert error(back, sharp, 1.0) < error(blurred, sharp, 1.0)


@pytest.mark.parametrize('size', [(240, 320), (239, 321), (61, 90)])
def test_no_blur_leaves_the_image_as_it_is(sharp, size):
    image = np.ascontiguousarray(sharp[:size[0], :size[1]])
    np.testing.assert_array_equal(deblurred(image, (0, 0, 0)), image)


def test_an_even_image_stays_even():
    grey = np.full((70, 90, 3), 77, np.uint8)
    np.testing.assert_array_equal(deblurred(grey, (9.0, 2.0, 1.0)), grey)


def test_a_gain_is_that_of_the_formula():
    """A pure wave, blurred by a lens: what is left of it comes back by Wiener's gain."""
    across = np.arange(512)
    for period in (8, 16, 32):
        wave = np.cos(2 * np.pi * across / period)
        image = np.repeat(np.repeat((128 + 40 * wave)[None, :, None], 64, 0), 3, 2).round().astype(np.uint8)
        middle = np.s_[20:44, 96:416, 0]    # whole periods
        found, given = ((each[middle] * wave[middle[1]]).mean() for each in (deblurred(image, (4, 4, 0)), image))
        left = np.exp(-2 * np.pi ** 2 * 4 / period ** 2)
        assert found / given == pytest.approx(left * 1.003 / (left ** 2 + 0.003), rel=0.02)


@pytest.mark.parametrize('angle', [0.0, 0.3, -1.2])
def test_a_blur_is_told_apart_into_lens_and_motion(angle):
    along = np.array([np.cos(angle), np.sin(angle)])
    covariance = 1.5 * np.eye(2) + 12.0 ** 2 / 12 * np.outer(along, along)
    lens, motion = lens_and_motion((covariance[0, 0], covariance[1, 1], covariance[0, 1]))
    assert lens == pytest.approx(1.5)
    assert abs(motion @ along) == pytest.approx(12.0) and np.hypot(*motion) == pytest.approx(12.0)
