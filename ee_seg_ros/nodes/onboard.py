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
"""The onboard node `ee_seg`: a mask for every image it takes at once, a final mask for each by the deadline.

Image callback: parks the newest image. Worker thread: infers, publishes the mask, forwards features if the frame did
not settle. Executor: parameters, refined masks, diagnostics. Thread of `FinalMasks`: lets final masks leave in order.
"""
import time

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.experts import Choice, ExpertChooser
from ee_seg_ros.inference.features import pack
from ee_seg_ros.inference.pixels import refine
from ee_seg_ros.nodes import health
from ee_seg_ros.nodes.conversions import ImageError, check_image, compressed_topic, image_message, to_rgb
from ee_seg_ros.nodes.diagnostics import NO_EXPERT, Tally, shares
from ee_seg_ros.nodes.final_masks import FinalMasks, Frame, Refined
from ee_seg_ros.nodes.lifecycle import SegmentationNode
from ee_seg_ros.nodes.offboard_link import OffboardLink
from ee_seg_ros.nodes.outputs import UNLABELLED, Outputs, confidence_of, ids_of, output_size
from ee_seg_ros.nodes.parameters import ONBOARD
from ee_seg_ros.nodes.qos import IMAGE, overridable
from ee_seg_ros.nodes.running import run
from ee_seg_ros.nodes.settings import settings_of
from ee_seg_ros.nodes.worker import Pace, Parking, Stint, start_thread


class Onboard(SegmentationNode):
    """The node on the robot."""

    def __init__(self):
        super().__init__('ee_seg', ONBOARD, ('camera', 'inference', 'link', 'model'))

    # --- lifecycle ---

    def load(self, bundle: Bundle, values: dict, stack) -> None:
        """Engines and publishers."""
        stack.callback(self._forget)
        self._settings = settings_of(values, bundle)
        self._engine = self._make_engine(bundle, values, 'onboard')
        self._chooser = ExpertChooser(bundle)
        self._rest = self._make_engine(bundle, values, 'offboard') if self._settings.finish == 'onboard' else None
        if bundle.split is None:
            self.get_logger().info(f'bundle {bundle.name} has no split: all of it runs here, nothing is forwarded')
        self._warm_up(bundle)
        self._outputs = Outputs(self, bundle)
        stack.callback(self._outputs.close)
        self._tally = Tally()

    def begin(self, stack) -> None:
        """Threads first, then what feeds them; in the end the image goes first and final masks leave last."""
        self._last_image = time.monotonic()
        self._finals = FinalMasks(self._publish_final, self.get_logger().warning)
        stack.callback(self._finals.close)
        self._link = OffboardLink(self, self.bundle, self._finals, self._tally, self.values['features_reliable'])
        stack.callback(self._link.close)
        self._parking, self._pace, self._stint = Parking(), Pace(), Stint(self._tally.count)
        stack.callback(start_thread('inference', self._work).join)
        stack.callback(self._parking.close)
        self._outputs.publish_labels()
        compressed = self.values['image_transport'] == 'compressed'
        self._images = self.create_subscription(
            CompressedImage if compressed else Image, compressed_topic(self, 'image') if compressed else 'image',
            self._on_image, **overridable(IMAGE))
        stack.callback(self.destroy_subscription, self._images)

    def _forget(self):
        """Let go of the models: they are most of what the process holds."""
        self._engine = self._rest = self._chooser = None

    def apply(self, values: dict) -> None:
        """Live parameters."""
        settings = settings_of(values, self.bundle)
        if settings.finish == 'onboard' and self._rest is None:
            self._rest = self._make_engine(self.bundle, values, 'offboard')
        self._settings = settings

    def _make_engine(self, bundle, values, part):
        return Engine(bundle, values['providers'], values['threads'], part, self.get_logger().warning)

    def _warm_up(self, bundle):
        # The first run takes ten times as long as the others, and would be the one to find a graph that fails.
        grey = np.full((bundle.height, bundle.width, 3), 128, np.uint8)
        for expert in bundle.experts:
            self._engine.segment(grey, 'never', expert=expert)
        result = self._engine.segment(grey, 'never')
        if bundle.split is not None:
            features = self._engine.encode(result)
            if self._rest is not None:
                self._rest.finish(features, result.placement)

    # --- one frame ---

    def _on_image(self, message):
        arrived = time.monotonic()
        self._last_image = arrived
        self._tally.count('arrived')
        try:
            check_image(message)
        except ImageError as error:
            self._refuse_image(error)
            return
        if self._parking.put((message, arrived)):
            self._tally.count('dropped')

    def _refuse_image(self, error):
        self._tally.count('bad_images')
        self.notices.error(('image', error.kind), f'image refused: {error} (further ones are counted in /diagnostics)')

    def _work(self):
        while True:
            rate = self._settings.max_rate
            taken = self._parking.take(self._pace.next_start(rate))
            if taken is None:
                return
            self._pace.started(rate)
            _, (message, arrived), dropped = taken
            with self._stint:
                try:
                    self._take(Frame(message.header, arrived, trace={'dropped_before': dropped}), to_rgb(message),
                               self._settings)
                except ImageError as error:
                    self._refuse_image(error)
                except Exception as error:    # whatever happens to one frame must not end the worker
                    self._failed('publication', error)

    def _take(self, frame, image, settings):
        """From pixels to mask, features and, in time, the final mask; whatever fails, both masks are published."""
        self._finals.begin(frame.key)
        size = output_size(image.shape[1], image.shape[0], settings.output_width, settings.output_height)
        chosen = self._choose(image, settings)
        result, ids = self._segment(frame, image, size, settings, chosen)
        frame.mask = image_message(frame.header, ids, 'mono8')
        self._outputs.publish_mask(frame)
        mask_ms = (time.monotonic() - frame.arrived) * 1e3
        self._tally.count('masks')
        self._tally.time('mask', mask_ms)
        self._describe(frame, result, settings, mask_ms, chosen)
        try:
            self._finish(frame, result, size, settings, chosen)
            self._outputs.publish_pictures(frame, image)
        except Exception as error:
            self._failed('what follows the mask', error)

    def _choose(self, image, settings):
        """The expert for an image; without a detector that works, the exits' own heads have to do."""
        try:
            return self._chooser.choose(image, settings.expert)
        except Exception as error:
            self._failed('detection of the distortion', error)
            return Choice()

    def _segment(self, frame, image, size, settings, chosen):
        """(Result or None, class ids uint8 (H, W)): all unlabelled where the model fails."""
        try:
            result = self._engine.segment(image, settings.criterion, settings.thresholds[chosen.expert],
                                          expert=chosen.expert, strength=chosen.level)
            frame.output = result.output
            began = time.perf_counter()
            ids = result.output.mask(*size)
            frame.trace['postprocess_ms'] = (time.perf_counter() - began) * 1e3
            return result, ids
        except Exception as error:    # onnxruntime raises types of its own
            self._failed('segmentation', error)
            frame.output = None
            return None, np.full(size[::-1], UNLABELLED, np.uint8)

    def _failed(self, what, error):
        self._tally.count('failed_frames')
        self.notices.error(('failed', what, type(error)),
                           f'{what} of a frame failed ({type(error).__name__}: {str(error)[:200]}); such frames are '
                           'counted as failed_frames in /diagnostics. If it goes on, try the CPUExecutionProvider and '
                           'check the bundle with `ee_seg info`')

    def _describe(self, frame, result, settings, mask_ms, chosen):
        self._tally.count(f'exit.{result.exit_name}' if result else 'exit.none')
        self._tally.count(f'expert.{chosen.expert or NO_EXPERT}')
        if chosen.family is not None:
            self._tally.count(f'distortion.{chosen.family}')
        frame.trace.update(
            exit=result.exit_name if result else '', criterion=settings.criterion, score=result and result.score,
            threshold=result and result.threshold, stopped_share=result and result.output.stopped_share,
            settled=bool(result and result.settled), forwarded=False, sent_cells=0.0, feature_bytes=0,
            final_source='', refined_age_ms=None, preprocess_ms=result and result.preprocess_ms,
            inference_ms=result and result.inference_ms, mask_ms=mask_ms, expert=chosen.expert,
            distortion=chosen.family, distortion_level=chosen.level, detector_ms=chosen.ms)
        frame.trace.setdefault('postprocess_ms', None)

    def _finish(self, frame, result, size, settings, chosen):
        """Queue the frame for its final mask, having seen to its refinement if there can be one."""
        here = settings.finish == 'onboard'
        wanted = (result is not None and not result.settled and settings.finish != 'never'
                  and self._engine.bundle.refines(chosen.expert, chosen.level) and (here or self._link.present)
                  and self._finals.may_forward(frame.key))
        payload = None
        if wanted:
            try:
                onboard = self._engine.onboard_map(result)
                if onboard.sent is None or onboard.sent.any():    # else there is nothing to refine
                    features = self._engine.encode(result)
                    frame.kept, frame.placement = self._engine.kept(result, onboard), result.placement
                    payload = b'' if here else pack(self.bundle, features, result.placement, size, onboard,
                                                    chosen.expert)
            except Exception as error:
                self._failed('packing of the features', error)
        if payload is None:
            self._finals.add(frame)
            return
        frame.trace.update(forwarded=not here, feature_bytes=len(payload),
                           sent_cells=1.0 if onboard.sent is None else float(onboard.sent.mean()))
        self._finals.add(frame, frame.arrived + settings.deadline)
        if here:
            self._finish_here(frame, features, onboard, size, settings, chosen.expert)
        else:
            self._link.send(frame.header, payload)

    def _finish_here(self, frame, features, onboard, size, settings, expert):
        try:
            output = self._rest.finish(features, frame.placement, settings.criterion, settings.thresholds[expert],
                                       onboard, expert=expert).output
            self._finals.refine(frame.key, Refined(output.mask(*size), time.monotonic(), output))
            self._tally.count('refined')
        except Exception as error:
            self._finals.refuse(frame.key)
            self._failed('the rest of the model (finish is onboard)', error)

    def _publish_final(self, frame, source, refined):
        """In the thread of FinalMasks."""
        try:
            width, height = frame.mask.width, frame.mask.height
            frame.trace['final_source'] = source
            self._tally.count(f'final_{source}')
            confidence = None
            if self._outputs.final_confidence_wanted:
                confidence = confidence_of(frame.output, width, height)
            if refined is None:
                self._outputs.publish_final(frame, frame.mask, confidence)
                return
            frame.trace['refined_age_ms'] = (refined.arrived - frame.arrived) * 1e3
            if confidence is not None:
                confidence = self._refined_confidence(frame, refined, confidence)
            self._outputs.publish_final(frame, self._with_kept(frame, self._ids(frame), refined.mask), confidence)
        except Exception as error:
            self._failed('publication of the final mask', error)

    def _refined_confidence(self, frame, refined, onboard):
        """Of the refined mask; if it did not come, the onboard one where both masks agree, 0 elsewhere."""
        width, height = frame.mask.width, frame.mask.height
        received = (self._link.confidence(frame.header, width, height) if refined.output is None
                    else refined.output.confidence(width, height))
        if received is None:
            received = onboard * (self._ids(frame) == refined.mask)
        return self._with_kept(frame, onboard, received)

    @staticmethod
    def _ids(frame):
        """The onboard mask as it was published."""
        return ids_of(frame.mask)

    @staticmethod
    def _with_kept(frame, onboard, refined):
        """A refined plane, but the onboard one where pixels had settled: their features were not sent."""
        return refined if frame.kept is None else refine(onboard, refined, frame.kept, frame.placement)

    # --- diagnostics ---

    def examine(self) -> dict:
        """Of the camera, the inference, the link to the offboard node, and the model."""
        self._outputs.look()
        self._link.want_confidence(self._outputs.final_confidence_wanted)
        total, since, seconds = self._tally.report()
        settings, median = self._settings, self._tally.median_ms
        inference = {'masks': total['masks'], 'mask_rate': since['masks'] / seconds, 'mask_ms': median('mask'),
                     'criterion': settings.criterion, 'expert': settings.expert, **shares(total, 'exit'),
                     **shares(total, 'expert'), **shares(total, 'distortion')}
        link = {'feature_bytes_per_second': since['feature_bytes'] / seconds, 'round_trip_ms': median('round_trip'),
                'offboard_nodes': self._link.servers}
        silent = time.monotonic() - self._last_image
        return {
            'camera': health.camera(self._images.topic_name, silent, settings.camera_timeout, total, since, seconds),
            'inference': health.inference(total, since, self._stint.running_ms, settings.max_rate, inference),
            'link': health.link(settings.finish, self._link.present, self._link.foreign, total, since, link),
            'model': health.model(self.bundle, self.values['providers'], self._engine.providers)}


def main(args=None) -> int:
    """Run the onboard node until it is told to stop; the exit status of the process."""
    return run(Onboard, 'ee_seg', args)
