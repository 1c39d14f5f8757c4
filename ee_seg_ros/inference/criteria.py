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
"""Exit criteria: is this mask good enough to stop here?

Each criterion scores the last of the exits run so far and compares the score with that exit's threshold. All of them
read low-resolution maps of `ExitOutput`, over the image's content only: every 16th pixel of network input, enough for a
mean; of those where single pixels stop one in each cell (`Bundle.cells`), which is the same where cells have 16 pixels.
"""
import math
from dataclasses import dataclass
from typing import Callable, Optional, Sequence

import cv2
import numpy as np

from ee_seg_ros.inference.bundle import OPERATING_POINTS
from ee_seg_ros.inference.gain import expected_gain
from ee_seg_ros.inference.outputs import ExitOutput

PIXEL_CONFIDENCE = 0.9    # MESS leaves th_pix to its search; this is the value that ours fixes
_NEIGHBOURS = np.ones((5, 5), np.uint8)    # around a pixel: with two classes among them it is at a border
_ON_TOP = 1 - 1e-6    # of the largest probability: from here on a class is on top, too


def normalised_entropy(probabilities: np.ndarray) -> float:
    """Mean over pixels of -sum_k p_k ln p_k / ln C, in 0..1; probabilities float (C, ...).

    Source: Gilbert et al., "Early-Exit Criteria for Edge Semantic Segmentation", ICMLCN 2025, after the authors' code.
    """
    clipped = np.maximum(probabilities, np.finfo(np.float32).tiny)
    total = -np.vdot(clipped, cv2.log(clipped))    # a third of the time of numpy.log
    return float(total / (clipped[0].size * math.log(len(clipped))))


def variation_of_information(previous: np.ndarray, current: np.ndarray) -> float:
    """Variation of information between two class maps, in bits; 0 where their regions are the same.

    previous, current: uint8 arrays of one shape. VI = -sum p_ij log2(p_ij / p_i.) - sum p_ij log2(p_ij / p_.j) with
    p_ij the share of pixels labelled i before and j now. Source: Gilbert et al., ICMLCN 2025 (region-based criterion).
    It is blind to the labels themselves: a region that changes its class as a whole scores 0.
    """
    joint = np.bincount(previous.ravel().astype(np.int64) * 256 + current.ravel(), minlength=1)
    pairs = np.flatnonzero(joint)
    shares = joint[pairs] / previous.size
    before = np.bincount(pairs // 256, shares)[pairs // 256]
    now = np.bincount(pairs % 256, shares)[pairs % 256]
    return float(-(shares * (np.log2(shares / before) + np.log2(shares / now))).sum() + 0.0)


def changed_share(previous: np.ndarray, current: np.ndarray) -> float:
    """Share of pixels whose class differs between two class maps, in 0..1."""
    return float(np.count_nonzero(previous != current) / previous.size)


def confident_share(probabilities: np.ndarray, pixel_threshold: float = PIXEL_CONFIDENCE) -> float:
    """Share of pixels whose top-1 probability is at least `pixel_threshold`, in 0..1; probabilities (C, h, w).

    At semantic borders a pixel takes the median confidence of its 3x3 neighbourhood.
    Source: MESS (Kouris et al., ECCV 2022), whose window is as wide as the output stride.
    """
    confidence = np.ascontiguousarray(probabilities.max(0), np.float32)
    classes = probabilities.argmax(0).astype(np.uint8)
    border = cv2.morphologyEx(classes, cv2.MORPH_GRADIENT, _NEIGHBOURS)
    smoothed = cv2.copyTo(cv2.medianBlur(confidence, 3), border, confidence)
    return np.count_nonzero(smoothed >= pixel_threshold) / smoothed.size


def confident_pixels(logits: np.ndarray, temperature: float, limits: np.ndarray,
                     weights: Optional[np.ndarray] = None) -> tuple:
    """(bool (h, w), float32 (h, w)): pixels that stop, and by how much the top-1 probability of each falls short of 1.

    A pixel stops because its top-1 probability exceeds the limit of its class. logits: float32 (C, h, w), of which the
    softmax at `temperature` is meant. limits: float (C,). weights: float (C,), by which what falls short is multiplied
    where a class is on top; None: 1. Where several are, the sums of theirs count. Source: CBT (Gormez and Koyuncu,
    arXiv 2210.15621); with one limit for all classes ADP-C (Liu et al., ICLR 2022).
    """
    parts = np.array(logits, order='C').reshape(len(logits), -1)
    parts -= np.maximum.reduce(parts)    # all in this one array: memory takes longer than arithmetic
    parts *= np.float32(1 / temperature)
    confidence = 1 / (np.ones(len(parts), np.float32) @ cv2.exp(parts, dst=parts))    # a third of the time of sum()
    # What is the top class's own, without argmax, which alone takes longer than all of this: its part is exp(0).
    cv2.threshold(parts, _ON_TOP, 1, cv2.THRESH_BINARY, dst=parts)
    stopped = confidence > np.asarray(limits, np.float32) @ parts    # both at once take longer than one by one
    doubt = np.subtract(1, confidence, out=confidence)
    if weights is not None:
        doubt *= np.asarray(weights, np.float32) @ parts
    return stopped.reshape(logits.shape[1:]), doubt.reshape(logits.shape[1:])


@dataclass(frozen=True)
class Criterion:
    """A rule that settles a frame.

    direction: 'below' settles when score < threshold, 'above' when score >= threshold.
    first: index of the first exit at which it can settle: 1 where consecutive exits are compared; the server has the
    robot's last map.
    score: takes the outputs of the exits run so far on this side; None for the rules that look at nothing.
    thresholds: what its list of thresholds means, in words.
    needs: key of bundle.json that it reads; a bundle without it does not offer the criterion.
    pixelwise: whether pixels stop one by one, and later stages run in the window with most of those that have not.
    shared: whether all exits have the same threshold, since scores mean the same at each.
    """

    name: str
    direction: str
    first: int
    score: Optional[Callable[[Sequence[ExitOutput]], float]]
    thresholds: str
    needs: Optional[str] = None
    pixelwise: bool = False
    shared: bool = False

    def entry(self, judged: int) -> dict:
        """What bundle.json says of this criterion before anything is measured.

        judged: how many exits have thresholds.
        """
        return {'direction': self.direction, 'thresholds': self.thresholds, 'curve': [],
                'operating_points': {point: {'thresholds': [0.0] * judged} for point in OPERATING_POINTS}}

    def judge(self, outputs: Sequence[ExitOutput], threshold: float) -> tuple:
        """(score or None, settled) of the last of `outputs`: of the exits run so far on one image.

        On the server the first of them is the `OnboardMap`.
        """
        if self.score is None:
            return None, self.name == 'always'
        if len(outputs) <= self.first:
            return None, False
        score = self.score(outputs)
        return (None, False) if score is None else (score, self.settles(score, threshold))

    def stricter(self, thresholds: Optional[Sequence[float]], by: float) -> Optional[Sequence[float]]:
        """Thresholds that are harder to pass by so much, in units of the score; None stays None."""
        sign = -1 if self.direction == 'below' else 1
        return thresholds if thresholds is None or not by else tuple(value + sign * by for value in thresholds)

    def settles(self, score: float | np.ndarray, threshold: float | np.ndarray):
        """True if a score passes a threshold; of arrays a bool array."""
        return score < threshold if self.direction == 'below' else score >= threshold


_PER_EXIT = 'one per exit but the last'
_FROM_SECOND = f'{_PER_EXIT}; that of the first exit is not used: there is nothing to compare it with'

CRITERIA = {criterion.name: criterion for criterion in (
    Criterion('entropy', 'below', 0, lambda outputs: normalised_entropy(outputs[-1].sampled_probabilities),
              f'mean normalised entropy, 0..1; {_PER_EXIT}'),
    Criterion('region', 'below', 1,
              lambda outputs: variation_of_information(outputs[-2].sampled_classes, outputs[-1].sampled_classes),
              f'variation of information in bits; {_FROM_SECOND}'),
    Criterion('region_change', 'below', 1,
              lambda outputs: changed_share(outputs[-2].sampled_classes, outputs[-1].sampled_classes),
              f'share of changed pixels, 0..1; {_FROM_SECOND}'),
    Criterion('confidence', 'above', 0, lambda outputs: confident_share(outputs[-1].sampled_probabilities),
              f'share of confident pixels, 0..1; {_PER_EXIT}'),
    Criterion('gain', 'below', 0, lambda outputs: expected_gain(outputs[-1]),
              f'expected gain in percentage points of mIoU per 1e9 multiply-accumulates; {_PER_EXIT}, all alike',
              'gain', shared=True),
    Criterion('class_threshold', 'above', 0, lambda outputs: outputs[-1].stopped_share,
              f"share of pixels that stopped, each by its class's limit, 0..1; {_PER_EXIT}", 'pixels', True, True),
    Criterion('uniform', 'above', 0, lambda outputs: outputs[-1].stopped_share,
              f'share of pixels that stopped, all by one limit, 0..1; {_PER_EXIT}', 'pixels', True, True),
    Criterion('always', 'above', 0, None, 'not used: every frame settles at the first exit'),
    Criterion('never', 'above', 0, None, 'not used: no frame settles'),
)}
