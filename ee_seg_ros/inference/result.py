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
"""What one side of a bundle found for one image."""
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from ee_seg_ros.inference.frame import Placement
from ee_seg_ros.inference.outputs import ExitOutput
from ee_seg_ros.inference.windows import Window


@dataclass
class Result:
    """What one side of a bundle found for one image: the robot's (`segment`) or the server's (`finish`).

    outputs: the exits that ran on this side, in order. score and threshold: of the last one (score None where the
    criterion gives none; both None at the last exit of the bundle, which is not judged). settled: whether that exit was
    good enough. macs: multiply-accumulates of all graphs that ran on this side; macs_at: the same up to each of the
    outputs. tensors: what graphs put out for whole maps. preprocess_ms, inference_ms: wall time; inference includes
    heads and criteria.
    stopped: pixels that later exits leave as they are, as of `ExitOutput`; None: whole frames stop. window: cells for
    which stages run; None: for all of them. outer: with the halo around. crops: maps of such windows, by name: (window,
    array). base: logits and temperature that stopped pixels have before any exit of this side. before: what the robot
    sent of its own last output.
    """

    placement: Placement
    outputs: list = field(default_factory=list)
    tensors: dict = field(default_factory=dict)
    score: Optional[float] = None
    threshold: Optional[float] = None
    settled: bool = False
    macs: float = 0.0
    macs_at: list = field(default_factory=list)
    stopped: Optional[np.ndarray] = None
    window: Optional[Window] = None
    outer: Optional[Window] = None
    crops: dict = field(default_factory=dict)
    base: Optional[tuple] = None
    before: list = field(default_factory=list)
    preprocess_ms: float = 0.0
    inference_ms: float = 0.0

    @property
    def output(self) -> ExitOutput:
        """The exit to publish: the last one that ran."""
        return self.outputs[-1]

    @property
    def exit_name(self) -> str:
        """Name of that exit."""
        return self.output.exit.name
