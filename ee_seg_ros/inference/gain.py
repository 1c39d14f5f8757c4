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
"""The exit criterion `gain`: is what the later exits would add to the mIoU worth what they cost?

A linear model that is part of the bundle says it from how unsure an exit is about each class; `search.gain` fits it.
Its unit is the same at every exit, percentage points (pp) of mIoU per 1e9 multiply-accumulates, so that all exits can
share one threshold.
"""
from typing import Optional

import numpy as np

from ee_seg_ros.inference.outputs import ExitOutput


def statistics(output: ExitOutput) -> np.ndarray:
    """float64 (C,): for each class the sum of 1 - p over the pixels given it, as a share of all pixels, 0..1.

    p: top-1 probability. They sum to the mean doubt. Every 16th pixel of network input in both directions is enough for
    a mean, and takes half the time of the others' grid.
    """
    logits = output.sampled_logits
    top = logits.max(0)
    doubt = 1 - 1 / np.exp((logits - top) * np.float32(1 / output.exit.temperature)).sum(0)
    return np.bincount(logits.argmax(0).ravel(), doubt.ravel(), minlength=len(logits)) / doubt.size


def expected_gain(output: ExitOutput) -> Optional[float]:
    """What a later exit is expected to add, in pp of mIoU per 1e9 multiply-accumulates: the most over all later exits.

    That is max_j gain(k -> j) / (cost_j - cost_k) at exit k. None where the bundle has no model for this exit.
    """
    model = output.bundle.gain.get(output.exit.name)
    if model is None:
        return None
    bias, weights = model
    return float((bias + weights @ statistics(output)).max())
