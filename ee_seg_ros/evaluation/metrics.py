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
"""Intersection over union from confusion matrices, and percentiles of times."""
from collections.abc import Sequence

import cv2
import numpy as np


def confusion(labels: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes + 1): how many pixels of true class i were given class j; sum those of many images.

    labels, mask: uint8 (H, W) and (h, w). A mask of another size is brought to that of the labels by nearest
    neighbour. Pixels whose label is not in 0..classes-1 (255: unlabelled) do not count. The last column holds the
    labelled pixels to which no class at all was given.
    """
    if mask.shape != labels.shape:
        mask = cv2.resize(mask, labels.shape[::-1], interpolation=cv2.INTER_NEAREST)
    known = labels < classes
    given = np.minimum(mask[known], classes)
    counts = np.bincount(labels[known] * np.int64(classes + 1) + given, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def iou(matrix: np.ndarray) -> np.ndarray:
    """float64 (classes,): intersection over union of each class of a `confusion`; NaN for one that no label has."""
    classes = len(matrix)
    hits, labelled = np.diagonal(matrix), matrix.sum(1)
    union = labelled + matrix[:, :classes].sum(0) - hits
    return np.where(labelled > 0, hits / np.maximum(union, 1), np.nan)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean of `iou` over the classes that occur in the labels, 0..1; NaN where nothing is labelled."""
    values = iou(matrix)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float('nan')


def percentiles(values: Sequence[float]) -> dict:
    """{'p50': x, 'p95': y} of at least one value, in its unit, by linear interpolation."""
    p50, p95 = np.percentile(np.asarray(values, np.float64), (50, 95))
    return {'p50': float(p50), 'p95': float(p95)}
