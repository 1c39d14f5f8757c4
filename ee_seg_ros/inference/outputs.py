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
"""What an exit puts out: logits, and the mask, confidence and low-resolution maps made from them."""
import math
from functools import cached_property
from typing import Optional, Sequence

import cv2
import numpy as np

from ee_seg_ros.inference.bundle import Bundle, Exit
from ee_seg_ros.inference.frame import Placement
from ee_seg_ros.inference.resize import argmax_resized

GRID = 8    # pixels of network input per cell of the grid on which criteria compare exits of different strides
SAMPLED = 16    # pixels of network input between the logits that are enough for means over the image


class ExitOutput:
    """The output of one exit for one image.

    bundle, exit: which one. logits: float32 (C, h, w) over the whole network input. placement: where the image lies in
    it. stopped: bool, one value per cell of the bundle (on the grid where it has none): pixels that are not computed
    any more; None where the criterion stops whole frames. Everything else is computed when it is first asked for.
    """

    def __init__(self, bundle: Bundle, exit_: Exit, logits: np.ndarray, placement: Placement,
                 stopped: Optional[np.ndarray] = None):
        self.bundle, self.exit, self.logits, self.placement, self.stopped = bundle, exit_, logits, placement, stopped
        self._stride = bundle.width // logits.shape[2]

    def _visible(self, planes, width, height):
        """The part of planes (C, h, w) under the image's content, and the size to resize it to.

        So resized, its top left (height, width) pixels are the content. A margin that the interpolation reads is kept.
        """
        place, stride = self.placement, self._stride
        rows = min(planes.shape[1], math.ceil(place.content_height / stride) + 1)
        columns = min(planes.shape[2], math.ceil(place.content_width / stride) + 1)
        size = (max(width, round(columns * stride * width / place.content_width)),
                max(height, round(rows * stride * height / place.content_height)))
        return planes[:, :rows, :columns], size

    def mask(self, width: int, height: int) -> np.ndarray:
        """Class ids as uint8 (height, width): the argmax of the logits, resized bilinearly to that size."""
        planes, size = self._visible(self.logits, width, height)
        return np.ascontiguousarray(argmax_resized(planes, *size)[:height, :width])

    def confidence(self, width: int, height: int) -> np.ndarray:
        """Top-1 probability as uint8 (height, width), 0..255: softmax at the logits' resolution, then resized."""
        top = (softmax(self.logits, self.exit.temperature).max(0) * 255).astype(np.float32)
        planes, size = self._visible(top[None], width, height)
        resized = cv2.resize(planes[0], size, interpolation=cv2.INTER_LINEAR)
        return resized[:height, :width].round().astype(np.uint8)

    @cached_property
    def grid_logits(self) -> np.ndarray:
        """float32 (C, rows, columns): logits on the common grid of 8 pixels, over the image's content only."""
        if self._stride != GRID:
            return self._at(GRID)
        rows, columns = self._content(GRID)
        return self.logits[:, :rows, :columns]

    def _content(self, size):
        """(rows, columns) of the image's content, of every `size`-th pixel."""
        return math.ceil(self.placement.content_height / size), math.ceil(self.placement.content_width / size)

    @cached_property
    def sampled_logits(self) -> np.ndarray:
        """float32 (C, rows, columns): the logits of every 16th pixel, see `sampled`."""
        return self.sampled(SAMPLED)

    def sampled(self, size: int) -> np.ndarray:
        """float32 (C, rows, columns): the logits of every `size`-th pixel of network input, over the image's content.

        A view, neither averaged nor resized, but where the exit's stride is larger.
        """
        if self._stride > size:
            return self._at(size)
        step, (rows, columns) = size // self._stride, self._content(self._stride)
        return self.logits[:, :rows:step, :columns:step]

    def _at(self, stride):
        """The logits resized bilinearly to a stride, over the image's content only."""
        rows, columns = self._content(stride)
        height, width = (size * self._stride // stride for size in self.logits.shape[1:])
        return resized(self.logits, height, width)[:, :rows, :columns]

    @property
    def stopped_share(self) -> Optional[float]:
        """Share of the image's pixels that have stopped, 0..1; None without `stopped`."""
        if self.stopped is None:
            return None
        rows, columns = self._content(self.bundle.height // self.stopped.shape[0])
        return np.count_nonzero(self.stopped[:rows, :columns]) / (rows * columns)

    @cached_property
    def sampled_probabilities(self) -> np.ndarray:
        """float32 (C, rows, columns): softmax of `sampled_logits` at the exit's calibrated temperature."""
        return softmax(self.sampled_logits, self.exit.temperature)

    @cached_property
    def sampled_classes(self) -> np.ndarray:
        """uint8 (rows, columns): class ids of `sampled_logits`."""
        return self.sampled_logits.argmax(0).astype(np.uint8)

    @cached_property
    def grid_probabilities(self) -> np.ndarray:
        """float32 (C, rows, columns): softmax of `grid_logits` at the exit's calibrated temperature."""
        return softmax(self.grid_logits, self.exit.temperature)

    @cached_property
    def grid_classes(self) -> np.ndarray:
        """uint8 (rows, columns): class ids on the grid."""
        return self.grid_logits.argmax(0).astype(np.uint8)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax over the first axis of float32 (C, ...) divided by `temperature`."""
    logits = np.ascontiguousarray(logits)    # of every other value: one slow pass instead of two
    scaled = logits - logits.max(0)
    scaled *= np.float32(1 / temperature)
    cv2.exp(scaled, dst=scaled)    # a quarter of the time of numpy.exp
    scaled *= 1 / scaled.sum(0)
    return scaled


def resized(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 (C, height, width): logits (C, h, w) resized bilinearly; a copy in any case."""
    classes, rows, columns = logits.shape
    if (rows, columns) == (height, width):
        return logits.copy()
    if rows % height == 0 and columns % width == 0:    # values of two planes do not meet: all of them at once
        planes = np.ascontiguousarray(logits).reshape(classes * rows, columns)
        halved = (rows, columns) == (2 * height, 2 * width)    # the mean of four values either way: half of the time
        return cv2.resize(planes, (width, classes * height), interpolation=cv2.INTER_AREA if halved else
                          cv2.INTER_LINEAR).reshape(classes, height, width)
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in logits])


def together(exit_: Exit, logits: np.ndarray, outputs: Sequence[ExitOutput]) -> np.ndarray:
    """Logits float32 (C, h, w) of an exit that is averaged: the mean over the heads so far, the new one and `outputs`.

    Where deeper features say little more than earlier ones, their heads err in other places: so it is on distorted
    images, of which the backbone has learned nothing (an expert's outputs are the mean over its own heads), and may be
    at the end of the network. Other exits answer alone.
    """
    earlier = [output for output in outputs if output.exit.expert == exit_.expert] if exit_.averaged else []
    if not earlier:
        return logits
    return (resized(earlier[-1].logits, *logits.shape[1:]) * np.float32(len(earlier)) + logits) / np.float32(
        len(earlier) + 1)
