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
"""Light, weather and the sensor of the camera: what turns painted colours into a frame."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from ee_seg_ros.data.scene_canvas import SKY, shade

# How strongly the ground and wall texture shows in each class.
TEXTURE = np.zeros(256, np.float32)
TEXTURE[:8] = 0, .35, 0, .3, .35, .3, 0, .3


@dataclass(frozen=True)
class Mood:
    """Light and weather: RGB tint of the light (0..1), mist colour, and how strong the rest is."""

    tint: np.ndarray  # (3,), 1 is neutral
    mist: np.ndarray  # (3,), 0..255
    visibility: float  # metres after which 63 % of a colour is mist
    contrast: float  # 1 is neutral
    noise: float  # amplitude in grey levels
    night: float  # 0 is day, 1 is night
    rain: float  # 0 is dry, 1 is heavy

    def mix(self, other, share):
        """This mood with ``share`` (0..1) of another one."""
        return Mood(*((1 - share) * a + share * b for a, b in zip(vars(self).values(), vars(other).values())))


def day_mood(rng):
    """The mood of the easy stretches: sunny to overcast."""
    grey = rng.uniform(200, 240)
    return Mood(rng.uniform(0.95, 1.05, 3) * rng.uniform(0.75, 1.15), np.array((grey - 8, grey, grey + 8)),
                rng.uniform(150, 400), rng.uniform(0.95, 1.2), rng.uniform(3, 8), 0.0, 0.0)


def hard_mood(rng):
    """The mood of a hard stretch: dusk, haze or rain."""
    kind, noise, light = rng.integers(3), rng.uniform(12, 26), rng.uniform(0.85, 1.15)
    if kind == 0:
        return Mood(rng.uniform(0.4, 0.65) * light * np.array((0.93, 0.97, 1.1)), np.array((120.0, 130, 156)),
                    rng.uniform(90, 200), 1.0, noise, 1.0, 0.0)
    if kind == 1:
        return Mood(rng.uniform(0.75, 1) * light * np.array((1.0, 1, 0.98)), np.array((196.0, 198, 200)),
                    rng.uniform(18, 45), 0.8, noise * 0.6, 0.2, 0.0)
    return Mood(rng.uniform(0.5, 0.75) * light * np.array((0.97, 1, 1.04)), np.array((158.0, 164, 172)),
                rng.uniform(40, 90), 0.75, noise * 0.8, 0.4, 1.0)


def clear_sky(rng, width, height, horizon):
    """A sky in clear weather, uint8 (height, width, 3): a gradient down to row ``horizon``, with clouds."""
    top = np.array(((104, 150, 214), (150, 184, 226), (206, 214, 222), (226, 230, 236))[rng.integers(4)])
    bottom = np.array((226, 234, 242))
    size = (width // 4 + 1, height // 4 + 1)  # clouds are soft, so a quarter of the pixels will do
    ramp = np.clip(np.arange(size[1]) * 4 / horizon, 0, 1)[:, None, None] ** 0.8
    clouds = np.zeros(size[::-1], np.float32)
    for columns, weight in ((4, 0.45), (9, 0.3), (22, 0.17), (50, 0.08)):
        coarse = rng.random((columns * 2, columns)).astype(np.float32)
        clouds += weight * cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    clouds = np.clip((clouds - rng.uniform(0.35, 0.65)) * 4, 0, 1)[..., None] * 0.85
    sky = top + (bottom - top) * ramp
    sky = np.clip(sky + clouds * (246 - sky), 0, 255).astype(np.uint8)
    return cv2.resize(sky, (width, height), interpolation=cv2.INTER_LINEAR)


def veiled_sky(sky, mood):
    """``sky`` as far as the weather lets it be seen, uint8 (height, width, 3)."""
    veil = float(np.clip(60 / mood.visibility, 0.05, 0.9))
    return cv2.LUT(sky, (np.arange(256)[:, None] * (1 - veil) + mood.mist * veil).astype(np.uint8)[None])


@lru_cache(maxsize=1)
def grain():
    """A seamless 512 x 512 texture, uint8, around 128: fine and coarse noise together."""
    rng, total = np.random.default_rng(0), np.zeros((512, 512), np.float32)
    for size, weight in ((512, 40), (256, 45), (64, 30), (16, 22)):
        noise = np.pad(rng.uniform(-1, 1, (size, size)).astype(np.float32), 2, mode='wrap')
        noise = cv2.resize(noise, None, fx=512 // size, fy=512 // size, interpolation=cv2.INTER_LINEAR)
        total += weight * noise[2 * 512 // size:, 2 * 512 // size:][:512, :512]
    return np.clip(128 + total, 0, 255).astype(np.uint8)


class Sensor:
    """Adds to a painted picture what makes it a frame: surface texture, exposure, lights, rain, blur and noise.

    walls: distance in metres of the camera from the facades on the left and on the right.
    """

    def __init__(self, rng, camera, width, height, walls, far):
        self.camera, self.size = camera, (width, height)
        # For each second pixel: where in ``grain`` the ground or wall behind it lies, were the street straight.
        u = ((np.arange(0, width, 2) - camera.centre)[None] / camera.focal).astype(np.float32)
        v = ((np.arange(0, height, 2) - camera.horizon)[:, None] / camera.focal).astype(np.float32)
        ground = np.float32(camera.height) / np.maximum(v, 1e-3)
        wall = np.where(u < 0, *np.float32(walls)) / np.maximum(abs(u), 1e-3)
        depth = np.minimum(np.minimum(ground, wall), np.float32(far))
        across = np.where(ground < wall, u, v) * depth
        # 36 texels a metre are fine enough for asphalt close by.
        self.texture = cv2.convertMaps(across * 36, depth * 36, cv2.CV_16SC2)
        self.fade = np.clip(1.3 - depth / 45, 0.25, 1) / 128
        corner = float(np.hypot(abs(u).max(), abs(v).max()))
        vignette = 1 - (u ** 2 + v ** 2) * np.float32(rng.uniform(0, 0.35) / corner ** 2)
        self.vignette = cv2.resize(vignette, self.size)

    def develop(self, canvas, mood, rng):
        """The frame, uint8 (height, width, 3), of what is painted on ``canvas``."""
        light = self._light(canvas.labels, mood)
        image = cv2.multiply(canvas.image, cv2.merge((light, light, light)), scale=1 / 128)
        levels = (np.arange(256)[:, None] - 110) * mood.contrast + 110
        image = cv2.LUT(image, np.clip(levels * mood.tint, 0, 255).astype(np.uint8)[None])
        if mood.night > 0.1:
            self._shine(image, canvas, mood.night)
        if mood.rain > 0.1:
            self._rain(image, rng, mood.rain)
        image = cv2.GaussianBlur(image, (3, 3), 0.6)
        noise = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
        return cv2.addWeighted(image, 1.0, noise, mood.noise / 128, -mood.noise)

    def _light(self, labels, mood):
        """How bright each pixel is, uint8 (height, width), 128 being neutral."""
        rolled = np.roll(grain(), -int(self.camera.s * 36) % 512, 0)
        grainy = cv2.remap(rolled, *self.texture, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        grainy = cv2.resize((grainy - np.float32(128)) * self.fade, self.size)
        gain = np.ones(256, np.float32)
        # At dusk the sky keeps more of its brightness than the street below it does.
        gain[SKY] = min(1.6, max(1.0, float(mood.tint.mean()) ** -0.35))
        light = (cv2.LUT(labels, gain) + grainy * cv2.LUT(labels, TEXTURE)) * self.vignette
        return cv2.convertScaleAbs(light, alpha=128)

    def _shine(self, image, canvas, night):
        """Add the glow of all lights that nothing hides, in place."""
        glow = np.zeros_like(image[::2, ::2])
        for (row, column), painted, radius, colour in canvas.lamps:
            if canvas.image[row, column].tolist() == painted:
                cv2.circle(glow, (column // 2, row // 2), max(1, int(radius * 0.4)), shade(colour, night), -1)
        blurred = cv2.GaussianBlur(glow, (0, 0), max(1.0, self.size[0] / 130))
        glow = cv2.addWeighted(blurred, 1.6, glow, 0.7, 0)
        cv2.add(image, cv2.resize(glow, self.size), image)

    def _rain(self, image, rng, rain):
        """Draw falling drops as short streaks, in place."""
        drops = rng.uniform(0, 1, (int(90 * rain), 2)) * self.size
        fall = (self.size[0] * 0.004, self.size[1] * 0.035)
        streaks = np.stack((drops, drops + fall), 1).astype(np.int32)
        cv2.polylines(image, list(streaks), False, (190, 196, 204), 1, cv2.LINE_AA)
