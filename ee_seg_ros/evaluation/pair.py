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
"""Both sides of a bundle in one process, as the two nodes run it over an ideal link."""
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.features import pack
from ee_seg_ros.inference.outputs import ExitOutput
from ee_seg_ros.inference.pixels import OnboardMap, refine


@dataclass(frozen=True)
class PairResult:
    """What the robot, and the server where it was asked, made of an image.

    sides: one `Result` or two. onboard: what went with the features, None where nothing was forwarded. features: these.
    kept: pixels that keep the onboard label, as of `Engine.kept`. expert: whose heads ran, '' for the exits' own.
    """

    sides: list
    onboard: OnboardMap | None = None
    features: dict = field(default_factory=dict)
    kept: np.ndarray | None = None
    expert: str = ''

    @property
    def outputs(self) -> list:
        """Outputs of all exits that ran, in order."""
        return [output for side in self.sides for output in side.outputs]

    @property
    def macs_at(self) -> list:
        """Multiply-accumulates of all that ran on both sides, up to each of the outputs."""
        before = [0.0, self.sides[0].macs]
        return [start + macs for start, side in zip(before, self.sides) for macs in side.macs_at]

    def mask(self, width: int, height: int, output: ExitOutput | None = None) -> np.ndarray:
        """uint8 (height, width): the final mask if the frame ends at `output` (default the last)."""
        output, robot = self.outputs[-1] if output is None else output, self.sides[0]
        mask = output.mask(width, height)
        if output.exit.onboard or self.kept is None:
            return mask
        return refine(robot.output.mask(width, height), mask, self.kept, robot.placement)

    def payload(self, engine: Engine) -> bytes:
        """What is sent; empty where nothing was forwarded."""
        if self.onboard is None:
            return b''
        place = self.sides[0].placement
        return pack(engine.bundle, self.features, place, (place.image_width, place.image_height), self.onboard,
                    self.expert)


def run_pair(engine: Engine, image: np.ndarray, criterion: str, thresholds: Sequence[float], partial: bool = True,
             limits: Sequence[float] | None = None, expert: str = '', strength: float | None = None) -> PairResult:
    """Run an image (uint8 (H, W, 3) RGB) through both sides until an exit settles; engine with part 'all'.

    criterion, thresholds, limits, expert, strength: as of `Engine.segment`. partial: forward only cells that are not
    settled, where the bundle knows them; a frame without any is not forwarded, nor is one that forwarding does not
    make better (`Bundle.refines`).
    """
    robot = engine.segment(image, criterion, thresholds, limits, expert, strength)
    if robot.settled or engine.bundle.split is None or not engine.bundle.refines(expert, strength):
        return PairResult([robot], expert=expert)
    onboard = engine.onboard_map(robot)
    if not partial:
        onboard = OnboardMap(onboard.classes)
    if onboard.sent is not None and not onboard.sent.any():
        return PairResult([robot], expert=expert)
    features = engine.encode(robot)
    server = engine.finish(features, robot.placement, criterion, thresholds, onboard, limits, expert)
    return PairResult([robot, server], onboard, features, engine.kept(robot, onboard), expert)
