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
"""What lines a procedural street: houses, gardens, fences and trees.

A plot has a front at x metres from s0 to s1; ``side`` is -1 on the left of the street and 1 on the right.
``u`` is the object's own row of ``N_RANDOM`` uniform random numbers in 0..1, which fixes its looks.
"""

import cv2
import numpy as np

from ee_seg_ros.data.scene_canvas import BUILDING, FENCE, TREE, along, pick, shade

BRICKS = ((150, 98, 78), (186, 168, 132), (206, 202, 192), (128, 126, 124), (104, 78, 66), (196, 180, 150),
          (168, 138, 104), (92, 92, 98), (178, 120, 92), (150, 146, 132))
ROOFS = ((96, 66, 56), (74, 76, 82), (112, 84, 66))
SHOPS = ((38, 62, 122), (130, 32, 36), (34, 84, 62), (46, 46, 50), (190, 150, 52), (150, 84, 40))


def draw_building(canvas, side, x, s0, s1, u):
    """A house: its wall towards the camera, its front, roof and windows."""
    if canvas.camera.passed(side, x, s1):
        return
    height, deep = 5 + 9 * u[0] * canvas.style.tallness, x + side * 9
    wall, light = shade(pick(BRICKS, u[1]), 0.8 + 0.35 * u[2]), canvas.style.walls[side > 0]
    front, gable = shade(wall, light), shade(wall, 0.85)
    canvas.poly(((x, 0, s0), (x, height, s0), (deep, height, s0), (deep, 0, s0)), BUILDING, gable)
    canvas.poly(along(x, s0, s1, 0, height), BUILDING, front)
    if u[3] < 0.6:
        draw_roof(canvas, (x + deep) / 2, along(x, s0, s1, 0, height), gable, shade(pick(ROOFS, u[5]), light), u)
    else:
        canvas.poly(along(x, s0, s1, height, height + 0.35), BUILDING, shade(front, 1.2))
    draw_windows(canvas, x, s0, s1, height, front, u)
    draw_ground_floor(canvas, x, s0, s1, u)


def draw_roof(canvas, middle, front, gable, tiles, u):
    """A pitched roof, its ridge ``middle`` metres right, above the corners ``front`` (4, 3) of a house."""
    _, near, far, _ = front
    (x, height, s0), s1, ridge = near, far[2], near[1] + 1.2 + 2 * u[4]
    canvas.poly((near, (middle, ridge, s0), (2 * middle - x, height, s0)), BUILDING, gable)
    canvas.poly((near, (middle, ridge, s0), (middle, ridge, s1), far), BUILDING, tiles)
    if u[6] < 0.6:  # a chimney
        chimney = canvas.stand(middle, s0 + 1, ridge)
        chimney.rect(-0.5, 0.5, -0.6, 1.2, BUILDING, shade(gable, 0.8))


def has_shop(u):
    """Whether the ground floor of a house is a shop."""
    return u[9] < 0.45


def facade_grid(s0, s1, u):
    """How a facade is divided: (height of a storey, number of columns of windows, their spacing), in metres."""
    n_columns = max(2, round((s1 - s0) / (1.9 + 1.6 * u[8])))
    return 2.9 + 0.6 * u[7], n_columns, (s1 - s0) / n_columns


def draw_windows(canvas, x, s0, s1, height, wall, u):
    """Rows of windows in a wall of colour ``wall``; fewer details the farther away."""
    near, (storey, n_columns, pitch) = s0 - canvas.camera.s, facade_grid(s0, s1, u)
    n_rows = max(1, int((height - 0.4) / storey))
    s, sill = np.meshgrid(s0 + pitch * (np.arange(n_columns) + 0.5), storey * np.arange(has_shop(u), n_rows) + 1.0)
    s, sill = s.ravel(), sill.ravel()
    if not s.size:
        return
    half, top = pitch * (0.22 + 0.14 * u[10]), storey * (0.5 + 0.1 * u[11])
    glass = (58, 66, 76) if u[10] < 0.6 else (120, 138, 156)

    def panes(grow, low, high):
        """Rectangles (n, 4, 3) from ``low`` to ``high`` above the sills, ``grow`` wider than the glass."""
        corners = np.full((s.size, 4, 3), x)
        corners[:, :2, 2], corners[:, 2:, 2] = (s - half - grow)[:, None], (s + half + grow)[:, None]
        corners[:, ::3, 1], corners[:, 1:3, 1] = (sill + low)[:, None], (sill + high)[:, None]
        return corners

    if near < 45:
        canvas.poly(panes(0.1, -0.14, top + 0.1), BUILDING, (222, 220, 214) if u[11] < 0.6 else shade(wall, 0.6))
        ledges = [along(x, s0, s1, storey * i - 0.08, storey * i + 0.08) for i in range(1, n_rows)]
        canvas.poly(ledges or along(x, s0, s1, height - 0.1, height), BUILDING, shade(wall, 1.15))
    canvas.poly(panes(0, 0, top), BUILDING, shade(glass, 0.9))
    if near < 30:  # the upper half mirrors the sky, behind a sash bar
        canvas.poly(panes(-0.06, top * 0.52, top - 0.05), BUILDING, shade(glass, 1.35))
    if canvas.night > 0.3:  # somebody is at home behind every third window or so
        lit = np.sin(s * 12.9 + sill * 78.2 + u[2] * 50) > 0.35
        if lit.any():
            canvas.poly(panes(0, 0, top)[lit], BUILDING, (255, 214, 130))


def draw_ground_floor(canvas, x, s0, s1, u):
    """A shop front, or a door."""
    storey, n_columns, pitch = facade_grid(s0, s1, u)
    if has_shop(u):
        fascia, a, b = pick(SHOPS, u[6]), s0 + 0.3, s1 - 0.3
        canvas.poly(along(x, a, b, 0, storey), BUILDING, shade(fascia, 0.75))
        canvas.poly(along(x, a, b, storey - 0.75, storey), BUILDING, fascia)
        posts = np.linspace(a + 0.15, b - 0.15, n_columns + 1)
        panes = [along(x, p + 0.08, q - 0.08, 0.45, storey - 0.9) for p, q in zip(posts, posts[1:])]
        canvas.poly(panes, BUILDING, (250, 220, 160) if canvas.night > 0.3 else (70, 76, 82))
    elif s0 - canvas.camera.s < 60:
        door = s0 + pitch * (0.5 + int(u[5] * n_columns))
        canvas.poly(along(x, door - 0.5, door + 0.5, 0, 2.15), BUILDING, shade(pick(SHOPS, u[4]), 0.75))


def draw_garden(canvas, side, x, s0, s1, u):
    """A gap between houses: lawn, trees and bushes behind a fence at x metres, from s0 to s1."""
    if canvas.camera.passed(side, x, s1):
        return
    deep = x + side * 14
    canvas.poly(((x, 0.1, s0), (x, 0.1, s1), (deep, 0.1, s1), (deep, 0.1, s0)), TREE, (92, 112, 58))
    n_trees = 3 if s0 - canvas.camera.s < 50 else 2
    for i in range(n_trees):
        s = s1 - (i + 0.5) * (s1 - s0) / n_trees
        draw_tree(canvas, x + side * (3 + 4 * u[i]), s, np.roll(u, i))
    if u[5] < 0.8:
        draw_fence(canvas, side, x, s0, s1, u)
    else:
        canvas.poly(along(x, s0, s1, 0.1, 1.3 + u[6]), TREE, shade((62, 82, 44), canvas.style.walls[side > 0]))


def draw_fence(canvas, side, x, s0, s1, u):
    """A fence along the street: boards, iron railings in front of a hedge, or a low wall with railings."""
    height, lit = 1.1 + 0.8 * u[6], canvas.style.walls[side > 0]
    boards = u[7] < 0.5
    colour = shade(pick(((126, 98, 70), (150, 132, 104), (92, 82, 72)), u[8]), lit) if boards else (44, 56, 40)
    canvas.poly(along(x, s0, s1, 0, height), FENCE, colour)
    if s0 - canvas.camera.s > 35:
        return
    step, thick = (0.5, 0.06) if boards else (0.3, 0.06)
    bars = [along(x, s, s + thick, 0, height) for s in np.arange(s0, s1, step)]
    canvas.poly(bars, FENCE, shade(colour, 0.7) if boards else (28, 30, 32))
    canvas.poly(along(x, s0, s1, height - 0.12, height), FENCE, shade(colour, 0.8) if boards else (28, 30, 32))


def crown(seed, size=128):
    """A leafy crown as a sprite, uint8 (size, size): 0 outside, else brightness around 128."""
    rng = np.random.default_rng(seed)
    sprite = np.zeros((size, size), np.uint8)
    angle, reach = rng.uniform(0, 2 * np.pi, 420), np.sqrt(rng.random(420)) * 0.82
    x, y = reach * np.cos(angle), reach * np.sin(angle)
    # Clusters of leaves, dark below and in the depth of the crown, painted first; light where the sun falls.
    brightness = 118 + 34 * y + 14 * x + rng.normal(0, 20, 420)
    for i in np.argsort(brightness):
        radius = rng.uniform(0.05, 0.17) * (1.25 - reach[i]) * size / 2
        centre = (int((1 + x[i]) * size / 2), int((1 - y[i]) * size / 2))
        cv2.circle(sprite, centre, max(2, int(radius)), int(np.clip(brightness[i], 56, 210)), -1)
    return sprite


def twigs(seed):
    """A leafless crown: segments (n, 2, 2) in crown radii from (0, -1), and the depth (n,) of each."""
    rng = np.random.default_rng(seed)
    segments, depths, tips = [], [], [((0.0, -1.0), np.pi / 2, 0.62)]
    for depth in range(6):
        grown = []
        for (x, y), angle, length in tips:
            for turn in rng.uniform(0.15, 0.6, 2) * (1, -1):
                end = (x + length * np.cos(angle + turn), y + length * np.sin(angle + turn))
                segments.append(((x, y), end))
                depths.append(depth)
                grown.append((end, angle + turn, length * rng.uniform(0.62, 0.82)))
        tips = grown
    return np.array(segments), np.array(depths)


CROWNS, TWIGS = [crown(i) for i in range(6)], [twigs(i) for i in range(4)]
LEAVES = ((70, 92, 44), (88, 104, 52), (56, 80, 50), (112, 108, 50), (130, 92, 46))


def draw_tree(canvas, x, s, u):
    """A tree at (x, s), in leaf or bare as the season of the drive says."""
    figure = canvas.stand(x, s)
    radius, trunk = 1.5 + 1.9 * u[3], 1.6 + 1.6 * u[4]
    if not figure.sees(radius * 1.4):
        return
    bark, top = shade((84, 70, 56), 0.8 + 0.4 * u[5]), trunk + radius
    figure.poly(((-0.17, 0), (-0.1, trunk + 0.5), (0.1, trunk + 0.5), (0.17, 0)), TREE, bark)
    if u[6] < canvas.style.bareness:
        draw_twigs(figure, pick(TWIGS, u[7]), radius, top, bark)
        return
    leaf = pick(LEAVES, (u[8] + canvas.style.season) % 1)
    box = (*figure.pixel(-radius, top + radius * 1.15), *figure.pixel(radius, top - radius * 1.15))
    canvas.stamp(pick(CROWNS, u[7]), box, TREE, leaf, figure.distance)


def draw_twigs(figure, crown_of_twigs, radius, top, bark):
    """The branches of a bare tree, its crown centred ``top`` metres above the foot."""
    segments, depths = crown_of_twigs
    pixels = segments * (radius, -radius * 1.1) + (0, -top)
    pixels = (pixels * figure.scale + (figure.x, figure.y)).astype(np.int32)
    colour = figure.canvas.misty(bark, figure.distance)
    for depth in range(6):
        thick = max(1, round(0.14 * 0.62 ** depth * figure.scale))
        lines = list(pixels[depths == depth])
        cv2.polylines(figure.canvas.image, lines, False, colour, thick, cv2.LINE_AA)
        # Seen from the street, the space between twigs belongs to the tree, so their labels are wider.
        cv2.polylines(figure.canvas.labels, lines, False, TREE, thick + 2)
