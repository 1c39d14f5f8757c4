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
"""A run as a short moving picture: camera image, onboard mask and final mask side by side.

A GIF, because that opens everywhere: in browsers, in documents, in a mail.
"""
from pathlib import Path

import numpy as np
from PIL import Image

from ee_seg_ros.evaluation.contact_sheet import UNSETTLED, frame_color
from ee_seg_ros.evaluation.drawing import DIM, PANEL, TEXT, Page, overlay, scaled
from ee_seg_ros.inference.bundle import Bundle

CELL, GAP, CAPTION = 280, 6, 24    # pixels
MOST, SECONDS = 40, 12             # pictures, and how long they run for


def write(path: Path, frames: list, source, bundle: Bundle, rate: float) -> None:
    """Write the first seconds of a run as a GIF, at the speed of the camera.

    frames: `recording.Frame`s in order, source: where their images came from, rate: of the camera in Hz.
    """
    shown = [frame for frame in frames if frame.received('mask')][:max(1, round(SECONDS * rate))]
    step = -(-len(shown) // MOST)
    pictures = [_picture(frame, source.frame(frame.index).image, bundle) for frame in shown[::step]]
    # One palette of pictures from all over the run, else colours flicker; no dithering, which flickers as well.
    sample = np.vstack([np.asarray(picture) for picture in pictures[::-(-len(pictures) // 8)]])
    palette = Image.fromarray(sample).quantize(160)
    pictures = [picture.quantize(palette=palette, dither=0) for picture in pictures]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], loop=0, duration=max(20, 1000 * step / rate))


def _picture(frame, image, bundle):
    height = max(1, round(CELL * image.shape[0] / image.shape[1]))
    page = Page(3 * CELL + 2 * GAP, height + CAPTION)
    refined = frame.trace().get('final_source') == 'refined'
    captions = [('camera', DIM), (f"onboard, {frame.trace().get('exit', '')}", frame_color(frame, bundle)),
                ('final, refined' if refined else 'final, the onboard mask', UNSETTLED if refined else TEXT)]
    masks = [frame.mask('mask'), frame.mask('final')]
    cells = [scaled(image, CELL, height), *(None if mask is None else overlay(image, mask, bundle.palette, CELL, height)
                                            for mask in masks)]
    for column, (pixels, (text, color)) in enumerate(zip(cells, captions)):
        x = column * (CELL + GAP)
        if pixels is None:
            page.box(x, 0, CELL, height, PANEL)
        else:
            page.picture(x, 0, pixels)
        page.text(x + 6, height + CAPTION / 2, text, 14, color, room=CELL - 12)
    return page.image
