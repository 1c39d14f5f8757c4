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
"""The offboard node `ee_seg_offboard`: finishes the inference of frames that did not settle, for one or more robots.

Feature callback: parks the newest message per robot. Worker thread: serves the robots in turn.
"""
import time
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.exceptions import InvalidTopicNameException
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import CompressedImage, Image

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.features import FORMAT, FeatureError, unpack
from ee_seg_ros.inference.frame import fit
from ee_seg_ros.nodes import health
from ee_seg_ros.nodes.conversions import image_message, png_message
from ee_seg_ros.nodes.diagnostics import NO_EXPERT, Tally, shares
from ee_seg_ros.nodes.lifecycle import SegmentationNode
from ee_seg_ros.nodes.outputs import wanted
from ee_seg_ros.nodes.parameters import OFFBOARD, ParameterError, thresholds_by_expert
from ee_seg_ros.nodes.presence import announce
from ee_seg_ros.nodes.qos import MASK, features, overridable
from ee_seg_ros.nodes.running import run
from ee_seg_ros.nodes.worker import Parking, Stint, start_thread


@dataclass(frozen=True)
class Settings:
    """When an exit behind the split is good enough; replaced as a whole, so that a frame sees one state."""

    criterion: str
    thresholds: dict    # by expert


@dataclass
class Robot:
    """The publishers of one robot, and where its features come from."""

    mask: Any
    raw_mask: Any
    confidence: Any
    features: str    # name of the topic, as resolved


def topic_of(robot: str, topic: str) -> str:
    """A topic of a robot, given its namespace; of the own namespace for ''."""
    return f"{robot.rstrip('/')}/{topic}" if robot else topic


class Offboard(SegmentationNode):
    """The node on the server."""

    def __init__(self):
        super().__init__('ee_seg_offboard', OFFBOARD, ('robots', 'inference', 'model'))

    # --- lifecycle ---

    def load(self, bundle: Bundle, values: dict, stack) -> None:
        """The engine. Raises BundleError for a bundle without a split: it leaves nothing to finish."""
        for name in values['robots']:
            try:
                validate_topic_name(topic_of(name, 'features'))
            except InvalidTopicNameException:
                raise ParameterError(f'robots has {name!r}: expected namespaces of letters, digits, _ and /, such as '
                                     "['robot1', 'fleet/robot2']") from None
        stack.callback(self._forget)
        self._engine = Engine(bundle, values['providers'], values['threads'], 'offboard', self.get_logger().warning)
        self._settings = Settings(values['criterion'], thresholds_by_expert(values, bundle))
        # The first run takes ten times as long as the others, and would be the one to find a graph that fails.
        self._engine.finish({name: np.zeros(bundle.tensors[name]['shape'], np.uint8)
                             for name in bundle.feature_tensors}, fit(bundle.width, bundle.height, bundle))
        self._tally = Tally()

    def _forget(self):
        """Let go of the model: it is most of what the process holds."""
        self._engine = None

    def apply(self, values: dict) -> None:
        """Live parameters."""
        self._settings = Settings(values['criterion'], thresholds_by_expert(values, self.bundle))

    def begin(self, stack) -> None:
        """The topics of each robot, the thread, and at last the word that this node serves."""
        self._parking, self._robots, self._stint = Parking(), {}, Stint(self._tally.count)
        for name in self.values['robots'] or ['']:
            self._robots[name] = self._serve(name, stack)
        stack.callback(start_thread('inference', self._work).join)
        stack.callback(self._parking.close)
        told = {'id': f'{self.get_fully_qualified_name()} {uuid.uuid4().hex[:8]}', 'bundle': self.bundle.name,
                'fingerprint': self.bundle.fingerprint, 'features': FORMAT}
        for name in self._robots:
            # In the end this goes first: robots see at once that nobody serves any more.
            stack.callback(announce(self, topic_of(name, 'offboard_info'), told))

    def _serve(self, name, stack):
        def publisher(type_, topic):
            made = self.create_publisher(type_, topic_of(name, topic), **overridable(MASK))
            stack.callback(self.destroy_publisher, made)
            return made

        robot = Robot(publisher(CompressedImage, 'refined_mask/compressed'), publisher(Image, 'refined_mask'),
                      publisher(CompressedImage, 'refined_confidence/compressed'),
                      self.resolve_topic_name(topic_of(name, 'features')))
        subscription = self.create_subscription(
            CompressedImage, topic_of(name, 'features'), lambda message: self._on_features(name, message),
            **overridable(features(self.values['features_reliable'])))
        stack.callback(self.destroy_subscription, subscription)
        return robot

    # --- one feature message ---

    def _on_features(self, name, message):
        self._tally.count('arrived')
        if self._parking.put((message, time.monotonic()), name):
            self._tally.count('dropped')

    def _work(self):
        while True:
            taken = self._parking.take()
            if taken is None:
                return
            name, (message, arrived), _ = taken
            with self._stint:
                self._take(name, message, arrived)

    def _take(self, name, message, arrived):
        try:
            self._refine(self._robots[name], message)
            self._tally.count(f'refined.{name}')
            self._tally.time('refine', (time.monotonic() - arrived) * 1e3)
        except FeatureError as error:
            self._tally.count(f'refused.{error.kind}')
            self.notices.warn(error.kind, f'features refused ({error.kind}): {error}. Further ones of this kind are '
                                          'counted in /diagnostics')
        except Exception as error:    # one message must not end the worker
            self._tally.count('failed_frames')
            self.notices.error(type(error), f'a frame failed ({type(error).__name__}: {str(error)[:200]}); such '
                                            'frames are counted as failed_frames in /diagnostics')

    def _refine(self, robot, message):
        received = unpack(self.bundle, message.data)
        settings = self._settings
        result = self._engine.finish(received.tensors, received.placement, settings.criterion,
                                     settings.thresholds[received.expert], received.onboard, expert=received.expert)
        output = result.output
        self._tally.count(f'exit.{result.exit_name}')
        self._tally.count(f'expert.{received.expert or NO_EXPERT}')
        size = received.output_width, received.output_height
        mask = output.mask(*size)
        # The confidence goes first: it has to be there when the mask lets the frame leave on the robot.
        if wanted(robot.confidence):
            robot.confidence.publish(png_message(message.header, output.confidence(*size)))
        robot.mask.publish(png_message(message.header, mask))
        if wanted(robot.raw_mask):
            robot.raw_mask.publish(image_message(message.header, mask, 'mono8'))

    # --- diagnostics ---

    def examine(self) -> dict:
        """Of the robots, the inference and the model."""
        total, since, seconds = self._tally.report()
        served = sum(number for name, number in since.items() if name.startswith('refined.'))
        values = {'refined_rate': served / seconds, 'refine_ms': self._tally.median_ms('refine'),
                  'criterion': self._settings.criterion, **shares(total, 'exit'), **shares(total, 'expert')}
        absent = [name for name, robot in self._robots.items() if not self.count_publishers(robot.features)]
        return {'robots': health.robots(absent, total, since, list(self._robots)),
                'inference': health.inference(total, since, self._stint.running_ms, 0.0, values),
                'model': health.model(self.bundle, self.values['providers'], self._engine.providers)}


def main(args=None) -> int:
    """Run the offboard node until it is told to stop; the exit status of the process."""
    return run(Offboard, 'ee_seg_offboard', args)
