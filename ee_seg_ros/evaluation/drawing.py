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
"""A page to draw text, boxes and pictures on, with the font that matplotlib brings along; coordinates in pixels."""
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, PANEL, LINE = (22, 25, 31), (33, 38, 47), (62, 69, 82)
TEXT, DIM, ACCENT = (232, 236, 242), (150, 160, 174), (255, 190, 92)


@lru_cache(maxsize=None)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans in pixels."""
    import matplotlib
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / name), size)


def text_width(text: str, size: int, bold: bool = False) -> int:
    """How many pixels wide a text is."""
    return int(np.ceil(font(size, bold).getlength(text)))


class Page:
    """A picture that is drawn from parts; `image` is Pillow's."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.image = Image.new('RGB', (width, height), BACKGROUND)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int = 15, color: tuple = TEXT, bold: bool = False,
             right: bool = False, room: float | None = None) -> float:
        """Write a line whose middle is at y, from x (or up to x); cut off with ... past `room`. Returns its width."""
        if room is not None and text_width(text, size, bold) > room:
            while text and text_width(text + '…', size, bold) > room:
                text = text[:-1]
            text += '…'
        width = text_width(text, size, bold)
        # Centred on the height of capitals, so that lines of any letters share one base line.
        x = x - width if right else x
        self._draw.text((x, y + 0.36 * size), text, font=font(size, bold), fill=color, anchor='ls')
        return width

    def runs(self, x: float, y: float, runs: list, size: int = 15, room: float | None = None) -> None:
        """Write pieces (text, color, bold) one after the other on one line."""
        end = None if room is None else x + room
        for text, color, bold in runs:
            left = None if end is None else end - x
            if left is not None and left < size:
                return
            x += self.text(x, y, text, size, color, bold, room=left)

    def box(self, x: float, y: float, width: float, height: float, color: tuple, radius: float = 0) -> None:
        """Fill a rectangle, with round corners if wanted."""
        if width >= 1 and height >= 1:
            self._draw.rounded_rectangle((x, y, x + width - 1, y + height - 1), radius, color)

    def marker(self, x: float, y: float, size: float, color: tuple) -> None:
        """Fill a triangle that points up to (x, y)."""
        self._draw.polygon(((x, y), (x - size * 0.6, y + size), (x + size * 0.6, y + size)), color)

    def picture(self, x: int, y: int, pixels: np.ndarray) -> None:
        """Place a picture, uint8 (H, W, 3) RGB."""
        self.image.paste(Image.fromarray(pixels), (int(x), int(y)))

    def save(self, path: Path) -> None:
        """Write it as a PNG."""
        self.image.save(path)


def overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray, width: int, height: int) -> np.ndarray:
    """An image under its mask in the colours of the classes, uint8 (height, width, 3) RGB.

    image: uint8 (H, W, 3). mask: uint8 (h, w) class ids. palette: uint8 (256, 3). Pixels without a class turn dark.
    """
    picture = scaled(image, width, height)
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # Colours are scaled as colours: shrunken class ids would tear thin poles apart.
    colors = scaled(palette[mask], width, height)
    return cv2.addWeighted(colors, 0.72, cv2.addWeighted(picture, 0.5, grey, 0.5, 0), 0.36, 0)


def scaled(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """An image at another size."""
    if (width, height) == image.shape[1::-1]:
        return image
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
