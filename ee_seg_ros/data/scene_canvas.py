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
"""A pinhole camera in a street, and a canvas that paints a picture and its label map together through it.

World coordinates are metres: x right of the centre line, y up from the road, s along the street.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
NEAR = 0.4  # metres in front of the camera where everything is cut off


def pick(palette, u):
    """The entry of ``palette`` that a uniform random number ``u`` (0..1) selects."""
    return palette[int(u * len(palette)) % len(palette)]


def shade(colour, factor):
    """``colour`` (RGB, 0..255) times ``factor``, as a tuple."""
    return tuple(min(255.0, c * factor) for c in colour)


def along(x, s0, s1, y0, y1):
    """The four corners (4, 3) in metres of an upright rectangle that runs along the street."""
    return ((x, y0, s0), (x, y1, s0), (x, y1, s1), (x, y0, s1))


class Camera:
    """A pinhole camera at ``s`` metres along the street, which bends sideways in a slow sine.

    width, height: of the picture in pixels; x: metres right of the centre line.
    """

    def __init__(self, rng, width, height, x):
        self.x, self.s, self.width = x, 0.0, width
        self.focal = width * rng.uniform(0.8, 1.15)  # pixels
        self.centre = width * rng.uniform(0.44, 0.56)  # pixel column of the heading
        self.horizon = height * rng.uniform(0.42, 0.57)  # pixel row; stands for the pitch
        self.height = rng.uniform(1.15, 1.9)  # metres above the road
        self.sway = rng.uniform(0, 9) if rng.random() < 0.6 else 0.0  # metres the street swings out
        self.wave, self.phase = rng.uniform(35, 60), rng.uniform(0, 2 * np.pi)

    def bend(self, s):
        """Sideways shift in metres of the street at s, relative to where the camera heads."""
        here, ahead = self.s / self.wave + self.phase, (s - self.s) / self.wave
        return self.sway * (np.sin(here + ahead) - math.sin(here) - math.cos(here) * ahead)

    def eye_x(self, s):
        """The x in street coordinates that is straight ahead of the camera at s."""
        return self.x - self.bend(s)

    def pixel(self, x, y, s):
        """The column and row, as floats, at which one point is seen."""
        scale = self.focal / max(s - self.s, NEAR)
        return float(self.centre + (x - self.x + self.bend(s)) * scale), self.horizon + (self.height - y) * scale

    def project(self, points):
        """Pixels (..., 2) of points (..., 3)."""
        s = np.maximum(points[..., 2], self.s + NEAR)
        scale = self.focal / (s - self.s)
        x = points[..., 0] - self.x
        if self.sway:
            x = x + self.bend(s)
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = self.centre + x * scale
        pixels[..., 1] = self.horizon + (self.height - points[..., 1]) * scale
        # Beyond this they are far outside, and would overflow the fixed-point coordinates of OpenCV.
        return np.minimum(np.maximum(pixels, -9999, out=pixels), 9999, out=pixels)

    def passed(self, side, x, s):
        """Whether a wall on one side (-1 left, 1 right) at x has left the picture before it reaches s."""
        column = self.pixel(x, 0, s)[0]
        return column > self.width if side > 0 else column < 0


@dataclass(frozen=True)
class Style:
    """What the objects of one street have in common."""

    tallness: float  # of the houses, 1 is usual
    bareness: float  # share of trees without leaves
    season: float  # 0..1, which leaf colours are common
    walls: tuple  # brightness of the walls on the (left, right) side


class Canvas:
    """A picture and its label map, painted together.

    image: uint8 (height, width, 3) RGB; labels: uint8 (height, width); mood: the ``Mood`` of the frame.
    """

    def __init__(self, camera, image, labels, mood, style):
        self.camera, self.image, self.labels, self.style = camera, image, labels, style
        self.mist, self.visibility, self.night = tuple(mood.mist), mood.visibility, mood.night
        self.lamps = []  # ((row, column), what is painted there, radius in pixels, colour) of what shines in the dark

    def misty(self, colour, distance):
        """``colour`` seen from ``distance`` metres."""
        clear = math.exp(-max(distance, 0.0) / self.visibility)
        veil = 1 - clear
        (r, g, b), (mist_r, mist_g, mist_b) = colour, self.mist
        return clear * r + veil * mist_r, clear * g + veil * mist_g, clear * b + veil * mist_b

    def fill(self, pixels, cls, colour):
        """Fill polygons, pixels (n, corners, 2), not overlapping. ``cls`` None leaves the labels as they are."""
        # Coordinates are passed as eighths of a pixel, so that slow objects do not jump from pixel to pixel.
        polygons = list((pixels * 8).astype(np.int32))
        cv2.fillPoly(self.image, polygons, colour, cv2.LINE_AA, 3)
        if cls is not None:
            cv2.fillPoly(self.labels, polygons, cls, cv2.LINE_8, 3)

    def poly(self, points, cls, colour):
        """Fill one polygon, points (corners, 3), or several that do not overlap, (n, corners, 3), in metres."""
        points = np.asarray(points, np.float64)
        points = points.reshape(-1, *points.shape[-2:])
        self.fill(self.camera.project(points), cls, self.misty(colour, points[0, 0, 2] - self.camera.s))

    def stamp(self, sprite, box, cls, colour, distance):
        """Paint a sprite stretched to box (left, top, right, bottom) in pixels, seen from ``distance`` metres.

        sprite: uint8 (size, size); 0 is outside, any other value the brightness of ``colour``, 128 being neutral.
        """
        height, width = self.labels.shape
        left, top, right, bottom = box
        x0, y0, x1, y1 = max(0, int(left)), max(0, int(top)), min(width, int(right) + 1), min(height, int(bottom) + 1)
        if x0 >= x1 or y0 >= y1:
            return
        size = sprite.shape[0]
        kx, ky = size / (right - left), size / (bottom - top)
        matrix = np.array(((kx, 0, (x0 - left) * kx), (0, ky, (y0 - top) * ky)))
        tones = cv2.warpAffine(sprite, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        mask = (tones > 40).astype(np.uint8)
        tints = np.linspace(0, 2, 256)[:, None] * np.array(colour)
        ramp = np.clip(np.stack(self.misty(tints.T, distance), 1), 0, 255).astype(np.uint8)
        coloured = cv2.LUT(cv2.merge((tones, tones, tones)), ramp[None])
        cv2.copyTo(coloured, mask, self.image[y0:y1, x0:x1])
        self.labels[y0:y1, x0:x1][mask > 0] = cls

    def stand(self, x, s, y=0.0):
        """A flat figure that stands upright at (x, y, s) and faces the camera."""
        return Figure(self, x, s, y)


class Figure:
    """Paints in metres right of and above a foot point; for all that is flat or too thin to need depth."""

    def __init__(self, canvas, x, s, y):
        self.canvas, self.distance = canvas, max(s - canvas.camera.s, NEAR)
        self.x, self.y = canvas.camera.pixel(x, y, s)
        self.scale = canvas.camera.focal / self.distance  # pixels per metre

    def sees(self, reach):
        """Whether anything within ``reach`` metres left or right of the foot is in the picture."""
        reach *= self.scale
        return -reach < self.x < self.canvas.image.shape[1] + reach

    def pixel(self, x, y):
        """The column and row, as floats, of a point in metres right of and above the foot."""
        return self.x + x * self.scale, self.y - y * self.scale

    def poly(self, points, cls, colour):
        """Fill the polygon with corners (n, 2)."""
        pixels = np.array([[self.pixel(x, y) for x, y in points]])
        self.canvas.fill(pixels, cls, self.canvas.misty(colour, self.distance))

    def bar(self, a, b, thick, cls, colour):
        """A straight bar from a to b, ``thick`` metres wide but never thinner than a pixel."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        half = max(thick, 1.0 / self.scale) / 2 / max(math.hypot(dx, dy), 1e-6)
        nx, ny = -dy * half, dx * half
        self.poly(((a[0] + nx, a[1] + ny), (b[0] + nx, b[1] + ny), (b[0] - nx, b[1] - ny), (a[0] - nx, a[1] - ny)),
                  cls, colour)

    def rect(self, x0, x1, y0, y1, cls, colour):
        """Fill an upright rectangle."""
        self.poly(((x0, y0), (x0, y1), (x1, y1), (x1, y0)), cls, colour)

    def disc(self, x, y, radius, cls, colour, stretch=1.0):
        """Fill an ellipse, ``stretch`` times as high as wide."""
        column, row = self.pixel(x, y)
        centre, radius = (int(column * 8), int(row * 8)), radius * self.scale * 8
        axes = (int(radius), int(radius * stretch))
        colour = self.canvas.misty(colour, self.distance)
        cv2.ellipse(self.canvas.image, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA, 3)
        if cls is not None:
            cv2.ellipse(self.canvas.labels, centre, axes, 0, 0, 360, cls, -1, cv2.LINE_8, 3)

    def lamp(self, x, y, radius, colour):
        """Note a light that has just been painted; it glows in the dark unless something is painted over it."""
        canvas, (column, row) = self.canvas, self.pixel(x, y)
        height, width = canvas.labels.shape
        if canvas.night > 0 and 0 <= column < width and 0 <= row < height:
            place = int(row), int(column)
            canvas.lamps.append((place, canvas.image[place].tolist(), radius * self.scale, colour))
