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
"""What spoils a robot's images: motion, bad focus, sensor noise, low light, fog, rain; seeded, with levels.

Levels of `blur` and `noise` are those of Pacheco et al. (GLOBECOM 2021, arXiv 2108.09343). Everything is in pixels of
the image that is given.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

FAMILIES = ('clean', 'blur', 'noise', 'weather')    # what a detector tells apart, and what experts are trained on


@dataclass(frozen=True)
class Distortion:
    """One way to spoil an image. levels: rising strength, in `unit`. whole: levels are whole numbers.

    apply: (uint8 (H, W, 3) RGB, level, numpy Generator) -> uint8 (H, W, 3).
    """

    name: str
    family: str
    levels: tuple
    unit: str
    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def blur_kernel(sigma: float) -> np.ndarray:
    """float64 (n,): the 1-D Gaussian kernel of the paper, n = 4 sigma + 1 taps (the nearest odd number), sum 1."""
    return cv2.getGaussianKernel(2 * round(2 * sigma) + 1, sigma)[:, 0]


def motion_kernel(length: float, angle: float) -> np.ndarray:
    """float32 (n, n), sum 1: a line of `length` pixels at `angle` (radians; 0 is horizontal), its ends softened."""
    half = math.ceil(length / 2)
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    along = (np.linspace(-0.5, 0.5, 8 * half + 1) * (length - 1))[:, None] * (math.cos(angle), math.sin(angle)) + half
    low = np.floor(along).astype(int)
    for right in (0, 1):
        for down in (0, 1):    # each point of the line is shared by the four pixels around it
            share = np.abs(1 - right - (along[:, 0] - low[:, 0])) * np.abs(1 - down - (along[:, 1] - low[:, 1]))
            place = np.minimum(low + (right, down), 2 * half)
            np.add.at(kernel, (place[:, 1], place[:, 0]), share)
    return kernel / kernel.sum()


def blur_of(name: str, level: float, seed: int = 0) -> np.ndarray:
    """float64 (3,): how `distort` with these arguments blurs, as the covariance (xx, yy, xy) of its point spread.

    In pixels squared; 0 for a distortion that does not blur.
    """
    if DISTORTIONS[name].family != 'blur':
        return np.zeros(3)
    kernel = np.outer(blur_kernel(level), blur_kernel(level)) if name == 'blur' else motion_kernel(
        level, _angle(np.random.default_rng(seed)))
    down, right = np.indices(kernel.shape) - len(kernel) // 2
    return np.array([(kernel * across).sum() for across in (right * right, down * down, right * down)], float)


def _to_bytes(values):
    """Clipped, not wrapped, to 0..255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _blur(image, sigma, rng):
    size = len(blur_kernel(sigma))
    return cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)


def _angle(rng):
    # A robot turns more often than it hops: mostly along rows.
    return rng.normal(0, 0.35)


def _motion(image, length, rng):
    return cv2.filter2D(image, -1, motion_kernel(length, _angle(rng)), borderType=cv2.BORDER_REFLECT_101)


def _noise(image, sigma, rng):
    return _to_bytes(image + sigma * rng.standard_normal(image.shape, np.float32))


ELECTRONS = 4000.0    # that a small pixel holds when it is white, at the gain of daylight
READ_NOISE = 6.0      # electrons
GAMMA = 2.2


def _dark(image, stops, rng):
    """2 ** stops times less light; the camera wins half of the stops back by gain, which amplifies the noise."""
    light = (np.arange(256, dtype=np.float32) / 255) ** GAMMA * ELECTRONS / 2 ** stops
    electrons = cv2.LUT(image, light)
    # Shot noise has the variance of the signal; at these counts a normal distribution is close to Poisson's.
    spread = cv2.LUT(image, np.sqrt(light + np.float32(READ_NOISE ** 2)))
    electrons += spread * rng.standard_normal(image.shape, np.float32)
    developed = np.maximum(electrons, 0) * np.float32(2 ** (stops / 2) / ELECTRONS)
    return _to_bytes(cv2.pow(developed, 1 / GAMMA) * 255)


CAMERA_HEIGHT, STREET_WIDTH, FAR = 1.5, 24.0, 250.0    # metres


def street_depth(height: int, width: int) -> np.ndarray:
    """float32 (height, width): about how many metres a camera sees in a straight street, over ground and to facades.

    A stand-in where depth is not known: the horizon at 45 % of the height, 60 degrees of view across, nothing farther
    than `FAR`. Ground and facades meet softly (a harmonic sum), for no real street has these edges.
    """
    focal = width / (2 * math.tan(math.radians(30)))
    across = np.abs((np.arange(width, dtype=np.float32) - width / 2) / focal)[None]
    down = ((np.arange(height, dtype=np.float32) - 0.45 * height) / focal)[:, None]
    return 1 / (np.maximum(down, 0) / CAMERA_HEIGHT + across / (STREET_WIDTH / 2) + np.float32(1 / FAR))


def _fog(image, extinction, rng):
    """Koschmieder's law: what remains of a colour at a distance d is exp(-extinction d), the rest is air light.

    extinction: per kilometre; one sees 3 / extinction km far.
    """
    height, width = image.shape[:2]
    # Banks of fog: extinction varies by a third between places.
    banks = cv2.resize(rng.uniform(-1, 1, (5, 6)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    remains = np.exp(-street_depth(height, width) * np.float32(extinction / 1000) * (1 + banks / 3))[..., None]
    air = np.float32(rng.uniform(175, 225) + np.array((-3, 0, 4)))
    return _to_bytes(image * remains + air * (1 - remains))


def _rain(image, rate, rng):
    """Streaks of falling drops, every twelfth a near and thick one; less light; a veil of drops too far to be seen.

    rate: mm/h. Drops grow in number like rate ** 0.6, light and veil change with its root: a look, not a measurement.
    """
    height, width = image.shape[:2]
    slant = rng.normal(0, 0.15)
    # Drawn drop by drop: more rain adds drops to those of less rain. Their number is that of 480x360 pixels.
    drops = rng.uniform((-0.1, -0.2, 0.02), (1.1, 1, 0.09), (round(110 * rate ** 0.6 * height * width / 172800), 3))
    starts = drops[:, :2] * (width, height)
    ends = starts + drops[:, 2:] * height * (slant, 1)
    lines = np.rint(np.stack((starts, ends), 1) * 8).astype(np.int32)
    streaks = np.zeros((height, width), np.uint8)
    cv2.polylines(streaks, list(lines), False, 150, 1, cv2.LINE_AA, shift=3)
    cv2.polylines(streaks, list(lines[::12]), False, 190, max(1, round(height / 180)), cv2.LINE_AA, shift=3)
    opacity = cv2.GaussianBlur(streaks, (0, 0), height / 720).astype(np.float32)[..., None] / 255
    light, veil = np.float32(max(0.4, 1 - 0.06 * rate ** 0.5)), np.float32(min(0.5, 0.05 * rate ** 0.5))
    air = np.float32((176, 182, 190))
    behind = image * (light * (1 - veil)) + air * veil
    return _to_bytes(behind * (1 - opacity) + air * opacity)


DISTORTIONS = {distortion.name: distortion for distortion in (
    Distortion('blur', 'blur', (1, 2, 3, 4, 5), 'pixels (sigma)', _blur),
    Distortion('motion', 'blur', (5, 9, 15, 21), 'pixels (length)', _motion),
    Distortion('noise', 'noise', (5, 10, 20, 30, 40), 'grey levels (sigma)', _noise),
    Distortion('dark', 'noise', (2, 3, 4, 5), 'stops', _dark),
    Distortion('fog', 'weather', (10, 20, 40, 80), 'extinction per km', _fog),
    Distortion('rain', 'weather', (5, 12, 25, 50), 'mm/h', _rain),
)}


def distort(image: np.ndarray, name: str, level: float, seed: int = 0) -> np.ndarray:
    """An image (uint8 (H, W, 3) RGB) with the distortion `name` at a level: a function of the arguments, no state.

    `clean` returns the image itself. Levels between and around the listed ones are fine. Raises ValueError for a name
    that there is not, or a level that is not positive.
    """
    if name == 'clean':
        return image
    distortion = _known(name)
    if not (level > 0 and math.isfinite(level)):
        raise ValueError(f'level {level} of the distortion {name}: expected a positive number, for example one of '
                         f'{_listed(distortion)}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'an image of {image.dtype} {image.shape} cannot be distorted: expected uint8 (H, W, 3)')
    return distortion.apply(image, level, np.random.default_rng(seed))


def parse_distortion(text: str) -> tuple:
    """(name, level) of `noise:20`; `clean` and '' are ('clean', 0). Raises ValueError that says what is expected."""
    name, _, level = text.strip().partition(':')
    if name in ('', 'clean') and not level:
        return 'clean', 0
    distortion = _known(name, text)
    try:
        value = float(level)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        said = f'level {level!r}' if level else 'no level'
        raise ValueError(f'distortion {text!r} has {said}: expected {name}:LEVEL with a positive number of '
                         f'{distortion.unit}, for example one of {_listed(distortion)}')
    return name, int(value) if value == int(value) else value


def random_distortion(rng: np.random.Generator, family: str) -> tuple:
    """(name, level) for training: a distortion of a family, its level log-uniform over the range of those listed.

    `clean` gives ('clean', 0).
    """
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r} of distortions: there are {', '.join(FAMILIES)}")
    if family == 'clean':
        return 'clean', 0
    names = [name for name, distortion in DISTORTIONS.items() if distortion.family == family]
    levels = DISTORTIONS[names[rng.integers(len(names))]]
    low, high = math.log(levels.levels[0]), math.log(levels.levels[-1])
    return levels.name, math.exp(rng.uniform(low, high))


def _known(name, text=None):
    if name not in DISTORTIONS:
        raise ValueError(f'no distortion {text or name!r}: expected clean, or NAME:LEVEL with a name of '
                         f"{', '.join(DISTORTIONS)}, for example noise:20")
    return DISTORTIONS[name]


def _listed(distortion):
    return ', '.join(f'{level:g}' for level in distortion.levels)
