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
"""The onboard node's side of the link: is a matching offboard node there, features out, refined masks in."""
import time
from collections import OrderedDict

from sensor_msgs.msg import CompressedImage

from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.features import FORMAT
from ee_seg_ros.nodes.conversions import compressed_message, key_of, mask_of, plane_of
from ee_seg_ros.nodes.final_masks import FinalMasks, Refined
from ee_seg_ros.nodes.presence import Presence
from ee_seg_ros.nodes.qos import MASK, features, overridable

_KEPT = 16    # refined confidences that are kept until their final mask leaves


class OffboardLink:
    """Sends features while a matching offboard node is present, hands refined masks to `finals`.

    tally: counts refined, refined_late, refined_refused, feature_bytes and times round_trip. notices: says once.
    """

    def __init__(self, node, bundle: Bundle, finals: FinalMasks, tally, reliable: bool):
        self._node, self._bundle, self._finals, self._tally = node, bundle, finals, tally
        self._features = node.create_publisher(CompressedImage, 'features', **overridable(features(reliable)))
        self._confidences = OrderedDict()
        self._confidence_subscription = None
        self._refined_subscription = self._subscribe()
        self._presence = Presence(node, 'offboard_info', self._on_presence)
        self.present = False

    def send(self, header, payload: bytes) -> None:
        """Publish the features of a frame."""
        self._features.publish(compressed_message(header, payload, FORMAT))
        self._tally.count('forwarded')
        self._tally.count('feature_bytes', len(payload))

    @property
    def servers(self) -> int:
        """How many offboard nodes are there, whatever bundle they run."""
        return len(self._presence.servers)

    @property
    def foreign(self) -> str:
        """Fingerprint of an offboard node that is there but runs another bundle, where none runs this one; else ''."""
        stranger = self._stranger
        return stranger.get('fingerprint', 'unknown') if stranger else ''

    @property
    def _stranger(self):
        """What such an offboard node told of itself, else None."""
        servers = self._presence.servers
        matches = any(server.get('fingerprint') == self._bundle.fingerprint for server in servers)
        return servers[-1] if servers and not matches else None

    def want_confidence(self, wanted: bool) -> None:
        """Ask for refined confidences, or stop: they cost bytes on the link, so only while somebody listens."""
        if wanted == (self._confidence_subscription is not None):
            return
        self._unsubscribe()
        if wanted:
            # Created before that of the masks, so that the executor serves it first: a frame's confidence is there
            # when its mask lets the frame leave.
            self._confidence_subscription = self._node.create_subscription(
                CompressedImage, 'refined_confidence/compressed', self._on_confidence, MASK)
        self._refined_subscription = self._subscribe()

    def confidence(self, header, width: int, height: int):
        """The refined confidence of a frame as uint8 (height, width), or None if none came."""
        message = self._confidences.get(key_of(header))
        try:
            return None if message is None else plane_of(message, width, height)
        except ValueError:
            return None

    def close(self) -> None:
        """Leave the link."""
        self._presence.close()
        self._unsubscribe()
        self._node.destroy_publisher(self._features)

    def _subscribe(self):
        return self._node.create_subscription(CompressedImage, 'refined_mask/compressed', self._on_refined, MASK)

    def _unsubscribe(self):
        for subscription in (self._confidence_subscription, self._refined_subscription):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._confidence_subscription = self._refined_subscription = None

    def _on_presence(self):
        stranger, logger = self._stranger, self._node.get_logger()
        present = bool(self._presence.servers) and stranger is None
        if stranger is not None:
            self._node.notices.error(
                ('foreign', self.foreign),
                f"the offboard node runs another bundle ({stranger.get('bundle', '?')} {self.foreign}) than this one "
                f'({self._bundle.name} {self._bundle.fingerprint}): nothing is forwarded until both run the same')
        if present != self.present:
            logger.info('an offboard node is there: frames that do not settle are forwarded' if present else
                        'no matching offboard node: final masks are the onboard ones')
        self.present = present

    def _on_confidence(self, message):
        self._confidences[key_of(message.header)] = message
        while len(self._confidences) > _KEPT:
            self._confidences.popitem(last=False)

    def _on_refined(self, message):
        arrived, key = time.monotonic(), key_of(message.header)
        frame = self._finals.awaited(key)
        if frame is None:
            self._tally.count('refined_late')
            return
        try:
            mask = mask_of(message, frame.mask.width, frame.mask.height, len(self._bundle.classes))
        except ValueError as error:
            self._finals.refuse(key)
            self._tally.count('refined_refused')
            self._node.notices.warn('refined', f'a refined mask was refused: {error}; its frame keeps the onboard mask')
            return
        used = self._finals.refine(key, Refined(mask, arrived))
        self._tally.count('refined' if used else 'refined_late')
        self._tally.time('round_trip', (arrived - frame.arrived) * 1e3)
