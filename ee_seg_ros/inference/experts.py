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
"""Which expert's heads judge an image: the one that was asked for, or the one that the detector calls for."""
from dataclasses import dataclass
from typing import Optional

import numpy as np

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.detector import Detector, Watch

AUTO, OFF = 'auto', 'off'
# A look takes about a millisecond: a third of that a frame. What stays for six frames is no passing shadow.
EVERY, PATIENCE = 3, 2


@dataclass(frozen=True)
class Choice:
    """Which heads judge a frame, and why.

    expert: one of `Bundle.experts`, '' for the exits' own heads. family, level: what was detected, see `Detection`;
    both None where nothing was looked at. ms: wall time that it took.
    """

    expert: str = ''
    family: Optional[str] = None
    level: Optional[float] = None
    ms: float = 0.0


class ExpertChooser:
    """Chooses for each image of a stream, with the detector of a bundle, if it has one."""

    def __init__(self, bundle: Bundle):
        self._experts = bundle.experts
        self._watch = Watch(Detector(bundle), EVERY, PATIENCE) if bundle.detector is not None else None

    def choose(self, image: np.ndarray, asked: str) -> Choice:
        """The expert for an image, uint8 (H, W, 3) RGB.

        asked: `auto`: the expert of the family that the detector sees; '' for a clean image, for a family without an
        expert, and where the bundle has no detector. `off`: ''. Else a name. The detector runs for `auto` only.
        """
        if asked != AUTO or self._watch is None:
            return Choice('' if asked in (AUTO, OFF) else asked)
        found = self._watch.see(image)
        return Choice(found.family if found.family in self._experts else '', found.family, found.level, found.ms)
