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
"""Which distortion an image has, and how strong: from the spectrum of a crop and cheap statistics, in under 1 ms.

Pacheco et al. (GLOBECOM 2021, arXiv 2108.09343) give the log magnitude of the whole image's spectrum to a small
convolutional network. Here means of it over rings and sectors do, beside what a spectrum does not show: the noise of
the smoothest places, the light, the haze. A small network in the bundle (`detector.onnx`) judges these.
"""
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Optional

import cv2
import numpy as np
import onnxruntime

from ee_seg_ros.inference.bundle import Bundle, BundleError

FEATURES = 1         # changes with what `features` computes: a graph belongs to the features that it was trained on
CROP = 256           # pixels
RINGS, SECTORS = 10, 6
BLOCK = 8            # pixels, of the places whose noise is looked at
BANDS = 3            # of the image, from its top to its bottom
PERCENTILES = (0.02, 0.1, 0.25, 0.5, 0.9, 0.99)
# Immerkaer 1996: second differences both ways see noise and hardly any structure. 24 times as large as noise of the
# same spread, so that whole numbers are fine enough.
_SECOND = 4 * np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


@dataclass(frozen=True)
class Detection:
    """family: of `families`. level: 0 the mildest, 1 the strongest level trained on; 0 for a clean image.

    probabilities: family -> 0..1. ms: wall time it took. blur: if it is blurred, how: (xx, yy, xy), the covariance of
    its point spread in pixels squared, see `deblur`; None from a detector that does not say.
    """

    family: str
    level: float
    probabilities: dict
    ms: float
    blur: Optional[tuple] = None


@lru_cache(maxsize=1)
def _window():
    return cv2.createHanningWindow((CROP, CROP), cv2.CV_32F)


@lru_cache(maxsize=1)
def _places():
    """(order of the spectrum's values, start of each ring's sector in that order), of what `_power` returns."""
    down = np.fft.fftfreq(CROP)[:, None]
    across = np.arange(1, CROP // 2)[None] / CROP
    radius, angle = np.hypot(down, across), np.arctan2(down, across) / np.pi + 0.5
    # Rings of equal ratios from 2 % of the sampling rate on, the last one up to the corners.
    ring = np.floor(np.log(np.maximum(radius, 1e-9) / 0.02) / np.log(0.5 / 0.02) * (RINGS - 1))
    ring = np.clip(ring, -1, RINGS - 1).astype(int)
    # Sectors lie around horizontal and vertical: half a sector further.
    sector = np.floor(angle * SECTORS + 0.5).astype(int) % SECTORS
    place = np.where(ring < 0, -1, ring * SECTORS + sector).ravel()
    order = np.argsort(place, kind='stable')
    return order[np.count_nonzero(place < 0):], np.searchsorted(place[order][np.count_nonzero(place < 0):],
                                                                np.arange(RINGS * SECTORS))


def _power(grey):
    """float32 (CROP, CROP / 2 - 1): power spectrum of uint8 (CROP, CROP), without frequency 0 and the last across."""
    values = cv2.subtract(grey, cv2.mean(grey), dtype=cv2.CV_32F)
    packed = cv2.dft(cv2.multiply(values, _window(), dst=values))    # pairs (real, imaginary) from column 1 on
    packed = cv2.multiply(packed, packed, dst=packed)
    return packed[:, 1:-2:2] + packed[:, 2:-1:2]


def _spectrum(grey):
    """(RINGS * SECTORS,): mean logarithm of the power in each sector of each ring."""
    order, starts = _places()
    power = cv2.log(_power(grey) + 1.0).ravel()[order]
    return np.add.reduceat(power, starts) / np.diff(np.append(starts, len(order)))


def _roughness(plane):
    """float32 (CROP / BLOCK, CROP / BLOCK): mean absolute second difference in each block of uint8 (CROP, CROP)."""
    side = CROP // BLOCK
    rough = np.abs(cv2.filter2D(plane, cv2.CV_16S, _SECOND))
    return cv2.resize(rough, (side, side), interpolation=cv2.INTER_AREA) / np.float32(24)


def _quantiles(values, shares=PERCENTILES):
    """Logarithms of the values at these shares, in order of size."""
    ordered = np.sort(values, axis=None)
    return np.log(ordered[[int(share * (len(ordered) - 1)) for share in shares]] + 0.1)


def _statistics(patch, grey):
    """Noise of grey and of colours, at the smoothest places first, over all and in the dark and the bright half."""
    rough = _roughness(grey)
    red, _, blue = cv2.split(patch)
    tint = cv2.addWeighted(red, 0.5, blue, -0.5, 128)
    light = cv2.resize(grey, rough.shape, interpolation=cv2.INTER_AREA)
    bright = light > np.sort(light, axis=None)[light.size // 2]
    halves = [_quantiles(rough[half] if half.any() else rough, (0.05, 0.3)) for half in (bright, ~bright)]
    return [_quantiles(rough), _quantiles(_roughness(tint)), *halves]


def _looks(image):
    """Light, contrast, saturation and haze of three bands of the image, from every n-th pixel."""
    step = max(1, min(image.shape[:2]) // 48)
    red, green, blue = cv2.split(np.ascontiguousarray(image[::step, ::step]))
    most, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    looks = []
    for band in range(BANDS):
        rows = slice(band * len(red) // BANDS, (band + 1) * len(red) // BANDS or None)
        high, low = most[rows], least[rows]
        mean, spread = cv2.meanStdDev(high)
        dark = np.sort(low, axis=None)
        looks += [mean[0, 0] / 255, spread[0, 0] / 64, cv2.mean(cv2.subtract(high, low))[0] / 64,
                  *(dark[[len(dark) // 20, len(dark) // 2, -1 - len(dark) // 20]] / 255)]
    return looks


def _factor(image, width, height):
    """By which whole factor an image is shrunk to come closest to a network input."""
    return max(1, round(max(image.shape[1] / width, image.shape[0] / height)))


def features(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """float32 (n,): what a detector judges an image (uint8 (H, W, 3) RGB) by.

    width, height: of a network input; larger images are shrunk by the whole factor that brings them closest to it, for
    what counts is what the network gets to see. An image with less than CROP pixels a side is continued by its mirror.
    """
    factor = _factor(image, width, height)
    side = CROP * factor
    rows, columns = (max(0, (size - side) // 2) for size in image.shape[:2])
    patch = image[rows:rows + side, columns:columns + side]
    if patch.shape[:2] != (side, side):
        missing = side - patch.shape[0], side - patch.shape[1]
        patch = cv2.copyMakeBorder(patch, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101)
    if factor > 2:    # OpenCV averages areas fast by halves only
        patch = cv2.resize(patch, (2 * CROP, 2 * CROP), interpolation=cv2.INTER_LINEAR)
    patch = cv2.resize(patch, (CROP, CROP), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
    return np.concatenate([_spectrum(grey), *_statistics(patch, grey), _looks(image)]).astype(np.float32)


class Detector:
    """The detector of a bundle. Raises BundleError if the bundle has none, or one that this version cannot use.

    families: what it tells apart, `clean` first. One thread: the work is too little to share.
    """

    def __init__(self, bundle: Bundle):
        described = bundle.detector
        if described is None:
            raise BundleError(f'bundle {bundle.name} has no detector of distortions: export it with --detector, or set '
                              'the parameter `expert` to off or to the name of an expert')
        if described['features'] != FEATURES:
            raise BundleError(f'the detector of bundle {bundle.name} judges by features of version '
                              f"{described['features']}, this version of ee_seg_ros computes {FEATURES}: train the "
                              'detector again, or update ee_seg_ros')
        self.families = tuple(described['families'])
        self._size = described['width'], described['height']
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        content = bundle.file_bytes(described['file'], described['sha256'])
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
        except Exception as error:    # onnxruntime raises half a dozen unrelated types of its own
            raise BundleError(f'the detector of {bundle.path} cannot be loaded by onnxruntime '
                              f'{onnxruntime.__version__}: {str(error)[:200]}') from None
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def measures_blur(self) -> bool:
        """Whether its detections say how an image is blurred."""
        return 'blur' in self._outputs

    def detect(self, image: np.ndarray) -> Detection:
        """Judge one image, uint8 (H, W, 3) RGB, on its own."""
        began = time.perf_counter()
        found = features(image, *self._size)
        said = dict(zip(self._outputs, self._session.run(self._outputs, {'features': found[None]})))
        probabilities, place = said['probabilities'][0].tolist(), int(said['probabilities'][0].argmax())
        blur = said['blur'][0] * _factor(image, *self._size) ** 2 if self.measures_blur else None
        return Detection(self.families[place], float(said['levels'][0, place]), dict(zip(self.families, probabilities)),
                         (time.perf_counter() - began) * 1e3, None if blur is None else tuple(blur.tolist()))


class Watch:
    """What a stream of images suffers from: a detector that looks at every n-th image, and does not waver.

    every: look at each so many images. patience: so many looks in turn must agree before it changes its mind; the first
    look is believed at once.
    """

    def __init__(self, detector: Detector, every: int = 1, patience: int = 3):
        self._detector, self._every, self._patience = detector, every, patience
        self.forget()

    def forget(self) -> None:
        """Start anew: another stream."""
        self._seen, self._agree = 0, 0
        self._last: Optional[str] = None
        self._held: Optional[Detection] = None

    def see(self, image: np.ndarray) -> Detection:
        """The detection that holds with this image, uint8 (H, W, 3) RGB; its level is that of the last look.

        `ms` is 0 where it did not look.
        """
        look = self._seen % self._every == 0
        self._seen += 1
        if not look:
            return replace(self._held, ms=0.0)
        found = self._detector.detect(image)
        self._agree = self._agree + 1 if self._last == found.family else 1
        self._last = found.family
        if self._held is None or found.family == self._held.family or self._agree >= self._patience:
            self._held = found
        return replace(self._held, ms=found.ms)
