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
"""What stands and moves in a procedural street: posts, signs, cars and people.

Every ``draw_*`` function paints one object into picture and label map at once, through a ``Canvas``;
x and s are its place in metres: right of the centre line, and along the street.
``u`` is the object's own row of ``N_RANDOM`` uniform random numbers in 0..1, which fixes its looks.
"""

import math

import numpy as np

from ee_seg_ros.data.scene_canvas import BICYCLIST, CAR, NEAR, PEDESTRIAN, POLE, SIGN, along, pick, shade

PAINTS = ((32, 34, 40), (168, 172, 178), (206, 208, 208), (52, 66, 104), (128, 30, 30), (84, 90, 94),
          (40, 72, 62), (178, 150, 60), (60, 100, 150))
CLOTHES = ((28, 30, 38), (44, 52, 84), (116, 40, 40), (92, 92, 96), (170, 164, 154), (58, 74, 56), (190, 150, 60),
           (54, 96, 140))
BOARDS = ((38, 62, 122), (130, 32, 36), (34, 84, 62), (46, 46, 50), (190, 150, 52))
# (by day, in the dark)
HEADLIGHT, TAIL_LIGHT = ((236, 236, 226), (255, 246, 220)), ((186, 26, 26), (255, 40, 30))
SKINS = ((224, 182, 154), (190, 140, 108), (120, 82, 60))


def draw_lamp(canvas, x, s, u):
    """A lamp post at (x, s) whose arm reaches over the road."""
    figure, height, grey = canvas.stand(x, s), 5 + 3 * u[0], 60 + 90 * u[1]
    if not figure.sees(3):
        return
    arm, metal = -math.copysign(0.6 + u[2], x), (grey, grey, grey * 0.97)
    figure.bar((0, 0), (0, height), 0.15, POLE, metal)
    figure.bar((0, 0), (0, 1.1), 0.24, POLE, shade(metal, 0.9))
    figure.bar((0, height), (arm, height + 0.25), 0.09, POLE, metal)
    figure.bar((arm * 0.8, height + 0.2), (arm * 1.4, height + 0.3), 0.16, POLE, (206, 206, 198))
    figure.lamp(arm * 1.1, height + 0.2, 0.35, (255, 206, 130))


def draw_bollard(canvas, x, s, u):
    """A bollard at (x, s)."""
    figure = canvas.stand(x, s)
    figure.bar((0, 0), (0, 1.0), 0.16, POLE, (44, 44, 46))
    figure.bar((0, 0.8), (0, 0.92), 0.17, POLE, (210, 208, 200))


def draw_sign(canvas, x, s, u):
    """A traffic sign, a notice board or a traffic light (all SignSymbol) on a post (Pole)."""
    figure, y, size = canvas.stand(x, s), 2.1 + 0.7 * u[0], 0.34 + 0.14 * u[1]
    if not figure.sees(1):
        return
    figure.bar((0, 0), (0, y), 0.09, POLE, (120, 122, 122))
    red, white, blue = (188, 30, 34), (232, 230, 224), (34, 70, 158)
    kind = int(u[2] * 6)
    if kind == 0:  # a speed limit
        figure.disc(0, y, size, SIGN, red)
        figure.disc(0, y, size * 0.74, SIGN, white)
        figure.rect(-size * 0.4, size * 0.4, y - size * 0.3, y + size * 0.3, SIGN, (70, 70, 70))
    elif kind == 1:  # a warning
        for part, colour in ((1.15, red), (0.72, white)):
            figure.poly(((-size * part, y - size * 0.6 * part), (0, y + size * 1.2 * part),
                         (size * part, y - size * 0.6 * part)), SIGN, colour)
    elif kind == 2:  # keep left or right
        figure.disc(0, y, size, SIGN, white)
        figure.disc(0, y, size * 0.9, SIGN, blue)
        figure.bar((-size * 0.4, y + size * 0.4), (size * 0.4, y - size * 0.4), size * 0.25, SIGN, white)
    elif kind == 3:  # a direction board
        board = pick((blue, (30, 96, 62), white), u[3])
        figure.rect(-0.75, 0.75, y - 0.5, y + 0.5, SIGN, white)
        figure.rect(-0.7, 0.7, y - 0.45, y + 0.45, SIGN, board)
        writing = (70, 70, 70) if board is white else white
        for row in (-0.2, 0.15):
            figure.rect(-0.5, 0.2 + 0.3 * u[4], y + row, y + row + 0.12, SIGN, writing)
    elif kind == 4:  # a tall notice board, as in front of shops
        board = pick(BOARDS, u[3])
        figure.rect(-0.45, 0.45, 0.7, 2.7, SIGN, board)
        figure.rect(-0.3, 0.3, 1.9, 2.4, SIGN, shade(board, 1.8))
    else:
        figure.rect(-0.2, 0.2, y - 0.3, y + 0.75, SIGN, (26, 28, 28))
        for row, colour in enumerate(((60, 200, 110), (90, 66, 20), (80, 20, 20))):
            figure.disc(0, y - 0.1 + 0.32 * row, 0.11, SIGN, colour)
        figure.lamp(0, y - 0.1, 0.14, (60, 230, 130))


# The outline of a circle of radius 1 that stands along the street, (14, 3).
WHEEL = np.stack([(0.05 * np.cos(t), np.sin(t), np.cos(t)) for t in np.linspace(0, 2 * np.pi, 14, endpoint=False)])
# Side view of cars as (metres from the rear, height): a hatchback, a saloon and a van. Each has eight points: the
# rear end, the boot, the rear screen, the roof (points 3 and 4), the windscreen, the bonnet and the front end.
PROFILES = (
    ((0, .35), (0, .92), (.15, 1.0), (.75, 1.45), (2.3, 1.47), (3.1, .98), (4.0, .8), (4.1, .35)),
    ((0, .35), (0, .95), (.7, 1.0), (1.3, 1.42), (2.6, 1.42), (3.4, .95), (4.4, .78), (4.5, .35)),
    ((0, .4), (0, 1.1), (.05, 1.2), (.2, 2.1), (3.6, 2.1), (4.3, 1.25), (4.9, 1.05), (5.0, .4)))


def draw_car(canvas, x, s, u, oncoming=False):
    """A car whose near end is at (x, s), seen from behind, or from the front if ``oncoming``."""
    profile, paint = np.array(pick(PROFILES, u[0] ** 1.5)), shade(pick(PAINTS, u[1]), 0.85 + 0.3 * u[2])
    length, half = profile[-1, 0], 0.85 + 0.08 * u[3]
    if oncoming:
        profile = (profile * (-1, 1) + (length, 0))[::-1]
    y, z = profile[:, 1], profile[:, 0] + s
    width = np.where(y > y[2] + 0.15, 0.84, 1.0) * half  # the cabin is narrower than the body
    distance, glass = s - canvas.camera.s, (40, 46, 54)
    if distance > 50:
        draw_far_car(canvas.stand(x, s), half, profile[2, 1], profile[3, 1], paint, glass, oncoming)
        return
    left, right = np.stack((x - width, y, z), 1), np.stack((x + width, y, z), 1)
    canvas.poly(((x - half * 1.1, 0, s - 0.15), (x + half * 1.1, 0, s - 0.15), (x + half * 1.15, 0, s + length),
                 (x - half * 1.15, 0, s + length)), None, (34, 34, 36))  # its shadow
    eye = canvas.camera.eye_x(s)
    if not x - half < eye < x + half:
        draw_car_side(canvas, left if x > eye else right, s, shade(paint, 0.25 + 0.75 * canvas.style.walls[0]), glass)
    pixels = canvas.camera.project(np.stack((left, right)))
    if oncoming:  # the windscreen mirrors the sky
        glass = tuple(0.5 * g + 0.25 * m for g, m in zip(glass, canvas.mist))
    for i in (3, 2, 1, 0):  # far to near: the roof, the screen, the boot or bonnet, and the end
        panel = np.concatenate((pixels[0, i:i + 2], pixels[1, i + 1:i - 1 if i else None:-1]))
        canvas.fill(panel[None], CAR, canvas.misty(shade(paint, 1.15 if i % 2 else 0.9), distance))
        if i == 2:
            middle = panel.mean(0)
            canvas.fill((middle + (panel - middle) * 0.85)[None], CAR, canvas.misty(glass, distance))
    if distance > NEAR:
        draw_car_end(canvas, x, s, half, y[1], oncoming)


def draw_far_car(figure, half, belt, roof, paint, glass, oncoming):
    """A car so far away that it is but body, cabin and lights."""
    light, glow = HEADLIGHT if oncoming else TAIL_LIGHT
    figure.rect(-half, half, 0, 0.4, CAR, (30, 30, 32))
    figure.rect(-half, half, 0.3, belt, CAR, shade(paint, 0.9))
    figure.rect(-half * 0.84, half * 0.84, belt, roof, CAR, paint)
    figure.rect(-half * 0.7, half * 0.7, belt, roof - 0.1, CAR, glass)
    for side in (-1, 1):
        figure.disc(side * half * 0.83, belt - 0.17, 0.12, CAR, light)
        figure.lamp(side * half * 0.83, belt - 0.17, 0.14, glow)


def draw_car_side(canvas, outline, s, paint, glass):
    """The flank of a car: outline (8, 3) of its profile in metres, with windows, a pillar and wheels."""
    canvas.poly(outline, CAR, paint)
    x, cabin = outline[0, 0], outline[2:6]
    middle = cabin.mean(0)
    canvas.poly(middle + (cabin - middle) * (1, 0.78, 0.82), CAR, glass)
    wheels = WHEEL * 0.33 + ((x, 0.32, s + 0.75),), WHEEL * 0.33 + ((x, 0.32, outline[-1, 2] - 0.8),)
    canvas.poly(wheels, CAR, (22, 22, 24))
    if s - canvas.camera.s < 30:
        canvas.poly(along(cabin[1, 0], middle[2] - 0.05, middle[2] + 0.05, outline[2, 1], cabin[1, 1]), CAR, paint)
        canvas.poly([wheel.mean(0) + (wheel - wheel.mean(0)) * 0.58 for wheel in wheels], CAR, (120, 122, 124))


def draw_car_end(canvas, x, s, half, belt, oncoming):
    """What faces the camera, ``half`` as wide as the car: tyres, bumper, number plate and lights at ``belt`` height."""
    figure = canvas.stand(x, s)
    for side in (-1, 1):
        figure.rect(side * (half * 0.95 - 0.1) - 0.1, side * (half * 0.95 - 0.1) + 0.1, 0, 0.42, CAR, (22, 22, 24))
    figure.rect(-half, half, 0.28, 0.48, CAR, (48, 48, 52))
    plate, (light, glow) = ((226, 226, 220), HEADLIGHT) if oncoming else ((222, 190, 70), TAIL_LIGHT)
    if oncoming:
        figure.rect(-half * 0.5, half * 0.5, belt - 0.26, belt - 0.08, CAR, (30, 30, 34))
    figure.rect(-0.26, 0.26, 0.5, 0.62, CAR, plate)
    for side in (-1, 1):
        centre = side * half * 0.83
        figure.rect(centre - 0.12, centre + 0.12, belt - 0.28, belt - 0.06, CAR, light)
        figure.lamp(centre, belt - 0.17, 0.14, glow)


def draw_pedestrian(canvas, x, s, u, stride):
    """A walking person at (x, s); stride is the phase of the step in radians."""
    figure = canvas.stand(x, s)
    size, top, trousers = 0.92 + 0.16 * u[0], pick(CLOTHES, u[1]), pick(CLOTHES, u[2] * 0.6)
    skin, swing = pick(SKINS, u[3] ** 2), 0.22 * math.sin(stride)

    def at(px, py):
        return px * size, py * size

    if not figure.sees(0.5):
        return
    if figure.scale < 12:  # a few pixels, for which two rectangles and a dot will do
        figure.rect(-0.17, 0.17, 0, 0.9 * size, PEDESTRIAN, trousers)
        figure.rect(-0.25, 0.25, 0.85 * size, 1.5 * size, PEDESTRIAN, top)
        figure.disc(0, 1.62 * size, 0.14, PEDESTRIAN, skin)
        return
    draw_foot_shadow(figure)
    for side in (-1, 1):
        figure.bar(at(side * 0.08, 0.92), at(side * 0.09 + side * swing * 0.6, 0.04), 0.17, PEDESTRIAN,
                   shade(trousers, 0.9 + 0.15 * side))
        figure.bar(at(side * 0.24, 1.42), at(side * 0.29 - side * swing * 0.5, 0.85), 0.12, PEDESTRIAN,
                   shade(top, 0.85))
    figure.poly([at(*p) for p in ((-0.19, 0.82), (-0.26, 1.4), (-0.12, 1.5), (0.12, 1.5), (0.26, 1.4), (0.19, 0.82))],
                PEDESTRIAN, top)
    if u[4] < 0.35:  # a bag
        figure.rect(0.2, 0.45, 0.55, 0.9, PEDESTRIAN, pick(CLOTHES, u[5]))
    draw_head(figure, 0, 1.62 * size, PEDESTRIAN, skin, u)


def draw_head(figure, x, y, cls, skin, u):
    """A head with hair, its centre at (x, y) of the figure."""
    figure.bar((x, y - 0.2), (x, y), 0.11, cls, shade(skin, 0.85))
    figure.disc(x, y, 0.115, cls, skin, 1.25)
    figure.disc(x, y + 0.06, 0.12, cls, pick(((40, 30, 24), (90, 64, 40), (150, 120, 76), (110, 110, 110)), u[6]), 0.8)


def draw_foot_shadow(figure):
    """A soft patch of shade under the feet, which stays labelled as ground."""
    figure.disc(0, 0, 0.32, None, (62, 60, 60), 0.2)


def draw_cyclist(canvas, x, s, u, stride):
    """A person on a bicycle at (x, s), all of it Bicyclist; stride is the phase of the pedals in radians."""
    for at in (1.05, 0.0):
        canvas.poly(WHEEL * 0.35 + ((x, 0.34, s + at),), BICYCLIST, (28, 28, 30))
        canvas.poly(WHEEL * 0.27 + ((x, 0.34, s + at),), BICYCLIST, (104, 104, 104))
    figure, top = canvas.stand(x, s + 0.3), pick(((230, 220, 60), *CLOTHES), u[1])
    draw_foot_shadow(figure)
    frame, skin = pick(PAINTS, u[2]), pick(SKINS, u[3] ** 2)
    figure.bar((0, 0.15), (0, 0.95), 0.08, BICYCLIST, frame)
    figure.bar((-0.3, 1.02), (0.3, 1.02), 0.06, BICYCLIST, (36, 36, 38))
    for side in (-1, 1):
        foot = 0.3 + 0.17 * side * math.sin(stride)
        knee = (side * 0.16, foot + 0.42)
        figure.bar((side * 0.1, 0.98), knee, 0.17, BICYCLIST, pick(CLOTHES, u[4] * 0.5))
        figure.bar(knee, (side * 0.11, foot), 0.12, BICYCLIST, pick(CLOTHES, u[4] * 0.5))
        figure.bar((side * 0.22, 1.5), (side * 0.3, 1.05), 0.11, BICYCLIST, shade(top, 0.85))
    figure.poly(((-0.17, 0.9), (-0.25, 1.48), (-0.1, 1.58), (0.1, 1.58), (0.25, 1.48), (0.17, 0.9)), BICYCLIST, top)
    draw_head(figure, 0, 1.72, BICYCLIST, skin, u)
    if u[5] < 0.6:  # a helmet
        figure.disc(0, 1.8, 0.14, BICYCLIST, pick(((220, 220, 220), (40, 40, 44), (180, 40, 40)), u[7]), 0.75)
