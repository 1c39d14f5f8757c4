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
"""Procedural street scenes with exact labels, as seen from a car that drives down an endless street.

The labels are the 11 CamVid classes, in the order of ``scene_canvas``: 0 Sky, 1 Building, 2 Pole, 3 Road,
4 Pavement, 5 Tree, 6 SignSymbol, 7 Fence, 8 Car, 9 Pedestrian, 10 Bicyclist.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from ee_seg_ros.data import scene_houses as houses
from ee_seg_ros.data import scene_objects as objects
from ee_seg_ros.data import scene_weather as weather
from ee_seg_ros.data.scene_canvas import BUILDING, NEAR, PAVEMENT, ROAD, TREE, Camera, Canvas, Style

FAR = 90.0  # metres; beyond it there is only the skyline
N_RANDOM = 12  # random numbers that fix the looks of one object
PAGE = 64  # cells of a street whose random numbers are drawn together


@dataclass(frozen=True)
class Scene:
    """One frame.

    image: uint8 (height, width, 3), RGB. labels: uint8 (height, width), class ids 0..10.
    hard: whether the frame lies in a stretch of dusk, rain or haze with a crowded, noisy street.
    """

    image: np.ndarray
    labels: np.ndarray
    hard: bool


@lru_cache(maxsize=1024)
def random_page(*keys):
    """Uniform random numbers 0..1, (PAGE, N_RANDOM), that belong to integer keys."""
    return np.random.default_rng(keys).random((PAGE, N_RANDOM))


class StreetDrive:
    """A seeded drive along a street: frame k is a pure function of (seed, k, width, height).

    seed: any non-negative integer. width, height: pixels. metres_per_frame: how far the car gets in one frame,
    above 0; at 0.8 and 10 frames a second it drives 29 km/h.
    """

    def __init__(self, seed: int = 0, width: int = 480, height: int = 360, metres_per_frame: float = 0.8):
        self.seed, self.width, self.height, self.step = int(seed), width, height, metres_per_frame
        rng = np.random.default_rng((self.seed, 0))
        self.side = rng.choice((-1, 1), p=(0.75, 0.25))  # most drives keep left, as CamVid does
        self.lane = rng.uniform(2.9, 3.8)
        self.parking = rng.random(2) < 0.55  # parked cars on the left, on the right
        self.edge = self.lane + np.where(self.parking, 2.2, rng.uniform(0.3, 1.4))  # of the road, metres
        self.facade = self.edge + rng.uniform(2.0, 5.0, 2) + rng.choice((0, 3), p=(0.7, 0.3))
        self.gaps = rng.uniform(0.05, 0.6)  # share of gardens between the houses
        self.trees, self.busy = rng.uniform(0, 0.8) ** 1.4, rng.uniform(0.5, 1.3)
        self.asphalt = rng.uniform(72, 132) * rng.uniform(0.96, 1.04, 3)
        self.paving = rng.uniform(95, 165) * np.array((1.03, 1.0, 0.95))
        self.yellow_lines = rng.random() < 0.5
        self.sun = rng.uniform(0.4, 1.4)  # metres of shadow for a metre of wall, roughly
        self.style = Style(rng.uniform(0.3, 1.6), rng.choice((0.0, 0.2, 0.9)), rng.random(),
                           tuple(rng.uniform(0.55, 1.1, 2)))
        self.camera = Camera(rng, width, height, self.side * self.lane * rng.uniform(0.4, 0.56))
        self.day = weather.day_mood(rng)
        self.sky = weather.clear_sky(rng, width, height, self.camera.horizon)
        self.skyline = rng.random((61, 3))
        walls = self.facade[0] + self.camera.x, self.facade[1] - self.camera.x
        self.sensor = weather.Sensor(rng, self.camera, width, height, walls, FAR)

    def frame(self, index: int) -> Scene:
        """Frame ``index`` (0 or more), in any order; neighbouring frames are ``metres_per_frame`` apart."""
        hard, mood = self._mood(index)
        self.camera.s = index * self.step
        image = weather.veiled_sky(self.sky, mood)
        labels = np.zeros((self.height, self.width), np.uint8)
        canvas = Canvas(self.camera, image, labels, mood, self.style)
        self._paint_ground(canvas)
        for _, paint, *arguments in sorted(self._things(index), key=lambda thing: -thing[0]):
            paint(canvas, *arguments)
        noise = np.random.default_rng((self.seed, 5, index))
        return Scene(self.sensor.develop(canvas, mood, noise), labels, hard)

    # --- light and weather ---

    def _stretch(self, index):
        """(number of the stretch that frame ``index`` is in, whether it is hard, frames since its start)."""
        def luck(number, kind):
            return random_page(self.seed, 3, number // PAGE)[number % PAGE, kind]

        def start(number):  # every 30 frames give or take 5, so a stretch lasts 20 to 40
            return 30 * number + int(11 * luck(number, 0)) - 5 if number else 0

        index = max(int(index), 0)
        number = index // 30
        number += int(index >= start(number + 1)) - int(index < start(number))
        # One stretch in each run of three is hard, which makes it a third on any long drive.
        hard = number % 3 == int(3 * luck(number // 3, 1))
        return number, bool(hard), index - start(number)

    def _mood(self, index):
        """(whether frame ``index`` is hard, its Mood); the weather turns within a few frames."""
        def of(number, hard):
            return weather.hard_mood(np.random.default_rng((self.seed, 2, number))) if hard else self.day

        number, hard, since = self._stretch(index)
        mood = of(number, hard)
        if number and since < 4:
            before, was_hard, _ = self._stretch(index - since - 1)
            mood = of(before, was_hard).mix(mood, (since + 1) / 5)
        return hard, mood

    # --- the street ---

    def _paint_ground(self, canvas):
        """Skyline, road, kerbs, pavements and lane markings."""
        camera, width = self.camera, self.width
        bottom = camera.horizon + camera.focal * camera.height / FAR + 1
        columns = np.linspace(0, width, len(self.skyline))
        for left, (tall, wide, tone) in zip(columns[::5], self.skyline[::5]):
            top = camera.horizon - camera.focal * (0.03 + 0.05 * tall)
            block = np.array(((left, bottom), (left, top), (left + width * 0.08 * wide, top),
                              (left + width * 0.08 * wide, bottom)))
            canvas.fill(block[None], BUILDING, canvas.misty((128 + 40 * tone, 132, 128), 90))
        tops = camera.horizon - camera.focal * 0.035 * self.skyline[:, 0]
        woods = np.concatenate((((0, bottom),), np.stack((columns, tops), 1), ((width, bottom),)))
        canvas.fill(woods[None], TREE, canvas.misty((96, 106, 84), 90))
        s = camera.s + np.geomspace(NEAR, FAR, 28)

        def strip(x0, x1, y0, y1, cls, colour):
            points = np.concatenate((np.stack((np.full_like(s, x0), np.full_like(s, y0), s), 1),
                                     np.stack((np.full_like(s, x1), np.full_like(s, y1), s), 1)[::-1]))
            canvas.fill(camera.project(points)[None], cls, tuple(colour))

        top = min(int(bottom) - 1, self.height - 1)
        canvas.image[top:], canvas.labels[top:] = self.paving * 0.9, PAVEMENT
        left, right = -self.edge[0], self.edge[1]
        strip(left, right, 0, 0, ROAD, self.asphalt)
        strip(left, left + 0.5, 0, 0, ROAD, self.asphalt * 0.88)  # dust in the gutters
        strip(right - 0.5, right, 0, 0, ROAD, self.asphalt * 0.88)
        self._paint_markings(canvas, strip)
        for x, out in ((left, -1), (right, 1)):
            strip(x, x + out * 30, 0.12, 0.12, PAVEMENT, self.paving)
            strip(x, x, 0, 0.12, PAVEMENT, self.paving * 0.6)
            strip(x, x + out * 0.16, 0.12, 0.12, PAVEMENT, self.paving * 1.2)
        self._paint_shadows(canvas, top)

    def _paint_shadows(self, canvas, top):
        """The houses on the side away from the sun throw their shadows over the street."""
        left, right = self.style.walls
        number, depth = int(right < left), abs(right - left)
        out, facade = (-1, 1)[number], self.facade[number]
        clear = 1 - depth * max(0.0, 1 - 90 / canvas.visibility)
        if clear > 0.9:
            return
        shadow = np.zeros_like(canvas.labels)
        for _, paint, _, _, s0, s1, u in self._houses(10 + 20 * number, out, facade):
            if paint is houses.draw_building:
                wall, reach = out * facade, out * (facade - (4 + 8 * u[0]) * self.sun)
                quad = np.array(((wall, 0, s0), (wall, 0, s1), (reach, 0, s1 + 4), (reach, 0, s0 + 4)))
                cv2.fillPoly(shadow, [self.camera.project(quad).astype(np.int32)], 255)
        darker = (np.arange(256)[:, None] * clear * np.array((0.95, 0.98, 1.04))).clip(0, 255).astype(np.uint8)
        cv2.copyTo(cv2.LUT(canvas.image[top:], darker[None]), shadow[top:], canvas.image[top:])

    def _paint_markings(self, canvas, strip):
        """A dashed centre line, lines at the edges, and now and then a zebra crossing."""
        camera, white = self.camera, (212, 212, 206)
        first = int(camera.s // 6)
        s = np.arange(first, first + int(FAR // 6)) * 6.0
        canvas.poly([((-.07, 0, a), (.07, 0, a), (.07, 0, a + 3), (-.07, 0, a + 3)) for a in s], ROAD, white)
        if self.yellow_lines:
            for x in (-self.edge[0] + 0.3, -self.edge[0] + 0.5, self.edge[1] - 0.3, self.edge[1] - 0.5):
                strip(x - 0.04, x + 0.04, 0, 0, ROAD, (188, 164, 84))
        else:
            for x in (-self.lane, self.lane):
                strip(x - 0.05, x + 0.05, 0, 0, ROAD, np.array(white) * 0.9)
        for cell, u in self._cells(0, camera.s, camera.s + 60, 70):
            if u[0] < 0.4:
                a, x = cell * 70 + 40 * u[1], np.arange(-self.edge[0] + 0.4, self.edge[1] - 0.6, 1.0)
                canvas.poly([((b, 0, a), (b + .5, 0, a), (b + .5, 0, a + 3), (b, 0, a + 3)) for b in x],
                            ROAD, white)

    def _cells(self, stream, first, last, spacing):
        """The cells of a stream between two places: (cell number, its N_RANDOM uniform numbers)."""
        first, last = int(np.floor(first / spacing)), int(np.floor(last / spacing))
        for page in range(first // PAGE, last // PAGE + 1):
            # The keys of a generator must not be negative.
            rows = random_page(self.seed, 1, stream, page % 2 ** 32)
            for cell in range(max(first, page * PAGE), min(last, page * PAGE + PAGE - 1) + 1):
                yield cell, rows[cell - page * PAGE]

    def _stream(self, stream, index, spacing, easy, hard, speed=0.0, start=1.5, length=1.0):
        """Objects spread along the street that all move at ``speed`` (metres per frame).

        Yields (s, u) for those in view. ``easy`` and ``hard`` are the chances that a cell is taken, depending
        on the stretch in which the camera meets it: that way an object never appears out of nothing.
        ``start`` is how far ahead of the camera they are last seen, ``length`` how much room each one needs.
        """
        moved = speed * index
        first = self.camera.s + start - moved
        for cell, u in self._cells(stream, first - spacing, first + FAR, spacing):
            home = cell * spacing + (spacing - length) * u[-1]
            meeting = home / (self.step - speed)
            s = home + moved
            if u[-2] < max(easy, hard) and self.camera.s + start < s < self.camera.s + FAR:
                if easy == hard or u[-2] < (hard if self._stretch(meeting - 12)[1] else easy):
                    yield s, u

    def _things(self, index):
        """Everything that stands or moves in view: (s that orders the painting, painter, its arguments)."""
        step, busy = self.step, self.busy
        for number, out in enumerate((-1, 1)):
            edge, facade, stream = self.edge[number], self.facade[number], 10 + 20 * number
            yield from self._houses(stream, out, facade)
            kerb, path = out * (edge + 0.45), (edge + 0.9, facade - 0.4)
            for s, u in self._stream(stream + 1, index, 8, self.trees, self.trees):
                yield s, houses.draw_tree, kerb + out * 0.5, s, u
            for s, u in self._stream(stream + 2, index, 24, 0.8, 0.8):
                yield s, objects.draw_lamp, kerb, s, u
            for s, u in self._stream(stream + 3, index, 9, 0.45, 0.55):
                yield s, objects.draw_sign, kerb, s, u
            for s, u in self._stream(stream + 4, index, 3, 0.12, 0.12):
                yield s, objects.draw_bollard, kerb, s, u
            if self.parking[number]:
                for s, u in self._stream(stream + 5, index, 7, 0.35 * busy, 0.7, start=-4, length=5.3):
                    yield s, objects.draw_car, out * (edge - 1.15), s, u, out != self.side
            for way, speed in ((6, 0.17), (7, -0.17)):
                for s, u in self._stream(stream + way, index, 4.5, 0.12 * busy, 0.5, speed * step):
                    x = out * (path[0] + (path[1] - path[0]) * u[9])
                    yield s, objects.draw_pedestrian, x, s, u, 0.55 * index + 6 * u[8]
            own = out == self.side
            for s, u in self._stream(stream + 8, index, 16, 0.2 * busy, 0.6, (0.5 if own else -0.5) * step):
                yield s, objects.draw_cyclist, out * (self.lane - 0.25), s, u, 0.5 * index + 6 * u[8]
        for s, u in self._stream(50, index, 20, 0.35 * busy, 0.75, -0.9 * step, start=-4, length=6):
            yield s, objects.draw_car, -self.side * self.lane * (0.5 + 0.1 * u[8]), s, u, True
        for s, u in self._stream(51, index, 14, 0.05, 0.45):
            yield self._crossing(index, s, u)
        yield from self._ahead(index)

    def _houses(self, stream, out, facade):
        """Houses and gardens side by side; they share walls, so a cell runs from its own start to the next one's."""
        cells = list(self._cells(stream, self.camera.s - 24, self.camera.s + FAR + 12, 12))
        for (cell, u), (_, after) in zip(cells, cells[1:]):
            s0, s1 = cell * 12 + 5 * u[-1], cell * 12 + 12 + 5 * after[-1]
            if s1 > self.camera.s + 1:
                paint = houses.draw_garden if u[-2] < self.gaps else houses.draw_building
                yield s1, paint, out, out * facade, s0, s1, u

    def _crossing(self, index, s, u):
        """A pedestrian who crosses the road and has left the lane of the camera when it arrives."""
        gone = 0.13 * (s / self.step - index)
        x = self.side * np.clip(gone - 0.8 - 2 * u[7], -self.edge.min() - 1, self.edge.min() + 1)
        return s, objects.draw_pedestrian, x, s, u, 0.55 * index + 6 * u[8]

    def _ahead(self, index):
        """Two cars that drive ahead in the same lane; the camera falls behind and catches up again."""
        for cell, u in self._cells(60, 0, 1, 1):
            gap = 9 + 30 * cell + 45 * (1 + np.sin(index / 45 + 6.3 * u[-1])) * u[-2]
            s = self.camera.s + gap
            if gap < FAR:
                yield s, objects.draw_car, self.side * self.lane * (0.45 + 0.1 * u[8]), s, u
