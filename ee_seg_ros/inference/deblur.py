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
"""Takes blur back: what a lens out of focus or a motion has spread, before the network sees it.

A blur is described by the covariance of its point spread, (xx, yy, xy) in pixels squared. It is taken for a lens of
Gaussian spread, the same in all directions, and a straight motion at constant speed on top of it. Only light is
sharpened, not colours, of which neither eyes nor networks see much detail.
"""
from typing import Sequence

import cv2
import numpy as np

# Ratio of noise to signal, as power: how little of a frequency may be left for it still to be amplified. By the onboard
# mIoU on fitting images; that of a motion is larger, for a camera does not move as evenly as the model says.
LENS_NOISE, MOTION_NOISE = 0.003, 0.01
_BORDER = 24    # pixels of mirrored image around it: its opposite sides are no neighbours


def lens_and_motion(blur: Sequence[float]) -> tuple:
    """(variance of the lens in pixels squared, (right, down) of the motion in pixels) of a blur.

    A line of length l has the variance l ** 2 / 12 along itself and none across.
    """
    xx, yy, xy = blur
    values, vectors = np.linalg.eigh(((xx, xy), (xy, yy)))
    lens = max(0.0, float(values[0]))
    return lens, np.sqrt(12 * max(0.0, float(values[1]) - lens)) * vectors[:, 1]


def _wiener(transfer, noise):
    """Wiener's filter for a real transfer function; 1 where that is 1."""
    return transfer * (1 + noise) / (transfer * transfer + noise)


def _gains(down, right, lens, motion):
    """By what to multiply the spectrum at frequencies (rows, 1) and (1, columns), in cycles per pixel."""
    spread = -2 * np.pi ** 2 * lens
    gains = _wiener(np.exp(spread * down ** 2) * np.exp(spread * right ** 2), LENS_NOISE)
    if np.hypot(*motion) < 1:    # pixel: nothing
        return gains
    rows, columns = np.pi * motion[1] * down, np.pi * motion[0] * right
    # sin(rows + columns), of which only sines of single numbers need to be computed
    sines = np.sin(rows) * np.cos(columns) + np.cos(rows) * np.sin(columns)
    phase = rows + columns
    small = np.abs(phase) < 1e-3
    return gains * _wiener(np.where(small, 1, sines / np.where(small, 1, phase)), MOTION_NOISE)


def _all_gains(height, width, lens, motion):
    """float32 (height, width): gains in the order in which cv2.dft packs the spectrum of real numbers."""
    down = np.fft.fftfreq(height).astype(np.float32)[:, None]
    packed = ((np.arange(height, dtype=np.float32) + 1) // 2 / height)[:, None]    # real and imaginary parts in turn
    right = (np.arange(width // 2 + 1, dtype=np.float32) / width)[None]
    gains = np.empty((height, width), np.float32)
    inner = _gains(down, right[:, 1:-1], lens, motion)
    gains[:, 1:-1:2] = gains[:, 2:-1:2] = inner
    gains[:, ::width - 1] = _gains(packed, right[:, ::width // 2], lens, motion)
    return gains


def deblurred(image: np.ndarray, blur: Sequence[float]) -> np.ndarray:
    """An image, uint8 (H, W, 3) RGB, with a blur taken back as far as noise allows.

    Source: Wiener, "Extrapolation, Interpolation, and Smoothing of Stationary Time Series", 1949; of his filter the
    form for white signals. The mean of the image stays.
    """
    lens, motion = lens_and_motion(blur)
    light = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = light.shape
    size = [2 * cv2.getOptimalDFTSize((side + 2 * _BORDER + 1) // 2) for side in (height, width)]
    around = cv2.copyMakeBorder(light, _BORDER, size[0] - height - _BORDER, _BORDER, size[1] - width - _BORDER,
                                cv2.BORDER_REFLECT_101).astype(np.float32)
    spectrum = cv2.dft(around) * _all_gains(size[0], size[1], lens, np.asarray(motion, np.float32))
    sharp = cv2.dft(spectrum, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT)
    change = cv2.subtract(sharp[_BORDER:_BORDER + height, _BORDER:_BORDER + width], light, dtype=cv2.CV_16S)
    return cv2.add(image, cv2.merge((change, change, change)), dtype=cv2.CV_8U)
