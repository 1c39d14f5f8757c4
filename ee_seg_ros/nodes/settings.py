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
"""What one frame of the onboard node needs of the parameters."""
from dataclasses import dataclass

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.nodes.parameters import expert_of, thresholds_by_expert


@dataclass(frozen=True)
class Settings:
    """What of the parameters one frame needs; replaced as a whole, so that a frame sees one state."""

    criterion: str
    thresholds: dict         # by expert
    expert: str
    finish: str
    deadline: float          # seconds
    camera_timeout: float    # seconds
    max_rate: float
    output_width: int
    output_height: int


def settings_of(values: dict, bundle: Bundle) -> Settings:
    """Settings from parameter values; ParameterError or BundleError where they do not fit the bundle."""
    # Without a split all of the model is onboard, and nothing is left to finish.
    finish = values['finish'] if bundle.split else 'never'
    return Settings(values['criterion'], thresholds_by_expert(values, bundle), expert_of(values, bundle), finish,
                    values['deadline_ms'] / 1e3, values['camera_timeout_ms'] / 1e3, values['max_rate'],
                    values['output_width'], values['output_height'])
