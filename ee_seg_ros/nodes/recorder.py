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
"""The node `recorder`: writes down what the pair publishes, and when it came; says on stdout how far it is.

Listens to the onboard node `ee_seg` and the offboard node in its own namespace. OUT/frames.jsonl has one line per
stamp, OUT/diagnostics.jsonl what came on /diagnostics, and masks are PNG files of class ids named KIND_STAMP.png.
"""
import json
import threading
import time
from pathlib import Path

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image

from ee_seg_ros.nodes.conversions import stamp_ns
from ee_seg_ros.nodes.parameters import RECORDER, ParameterError, declare
from ee_seg_ros.nodes.presence import Presence
from ee_seg_ros.nodes.running import run

DEEP = QoSProfile(depth=100)    # reliable; a slow disk shall not lose a mask
PROGRESS_S = 0.2
KINDS = ('mask', 'final', 'refined')


class Recorder(Node):
    """Keeps one record per stamp in memory, masks on disk."""

    def __init__(self):
        super().__init__('recorder')
        self.done = threading.Event()
        self.values = declare(self, RECORDER)
        self._records, self._counts = {}, dict.fromkeys(KINDS + ('trace',), 0)
        self._diagnostics = None
        self._ready, self._progress_at, self._last = False, 0.0, None

    def start(self) -> None:
        """Open the folder and subscribe. Raises ParameterError."""
        if not self.values['out']:
            raise ParameterError('out is empty: give the folder to write into, for example -p out:=record')
        self._out = Path(self.values['out'])
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            self._diagnostics = open(self._out / 'diagnostics.jsonl', 'w', encoding='utf-8')
        except OSError as error:
            raise ParameterError(f"out {self.values['out']} cannot be written into: {error.strerror}") from None
        self.create_subscription(Image, 'ee_seg/mask', lambda message: self._on_image('mask', message), DEEP)
        self.create_subscription(Image, 'ee_seg/final_mask', lambda message: self._on_image('final', message), DEEP)
        self.create_subscription(CompressedImage, 'refined_mask/compressed', self._on_refined, DEEP)
        self.create_subscription(DiagnosticArray, 'ee_seg/trace', self._on_trace, DEEP)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, DEEP)
        self._presence = Presence(self, 'offboard_info')
        self.create_timer(0.05, self._look)

    def stop(self) -> None:
        """Write what there is, and say the last word."""
        if self._diagnostics is None:
            return
        self._diagnostics.close()
        self._diagnostics = None
        with open(self._out / 'frames.jsonl', 'w', encoding='utf-8') as file:
            for stamp in sorted(self._records):
                file.write(json.dumps(self._records[stamp]) + '\n')
        self._say('done')

    def _say(self, event):
        counts = {} if event == 'ready' else {
            'masks': self._counts['mask'], 'final_masks': self._counts['final'],
            'refined_masks': self._counts['refined']}
        if event == 'done':
            counts.update(frames=len(self._records), traces=self._counts['trace'])
        print(json.dumps({'event': event, **counts}), flush=True)

    def _record(self, header, kind):
        """The record of a stamp, with the time of arrival of this kind filled in."""
        stamp = stamp_ns(header)
        record = self._records.setdefault(stamp, {
            'stamp': stamp, 'frame_id': header.frame_id, 'mask_at': None, 'final_at': None, 'refined_at': None,
            'trace': {}})
        if kind != 'trace':
            record[f'{kind}_at'] = time.time_ns()
        self._counts[kind] += 1
        self._last = time.monotonic()
        return record

    def _on_image(self, kind, message):
        self._record(message.header, kind)
        if self.values['save_masks']:
            ids = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, :message.width]
            cv2.imwrite(str(self._path(kind, message.header)), ids, (cv2.IMWRITE_PNG_COMPRESSION, 1))

    def _on_refined(self, message):
        self._record(message.header, 'refined')
        if self.values['save_masks']:
            self._path('refined', message.header).write_bytes(bytes(message.data))

    def _path(self, kind, header):
        return self._out / f'{kind}_{stamp_ns(header)}.png'

    def _on_trace(self, message):
        record = self._record(message.header, 'trace')
        record['trace'] = {pair.key: pair.value for status in message.status for pair in status.values}

    def _on_diagnostics(self, message):
        for status in message.status:
            self._diagnostics.write(json.dumps({
                'at': time.time_ns(), 'name': status.name, 'level': status.level[0], 'message': status.message,
                'values': {pair.key: pair.value for pair in status.values}}) + '\n')

    def _look(self):
        """Twenty times a second: ready, progress, enough?"""
        now, values = time.monotonic(), self.values
        if not self._ready:
            self._ready = (self.count_publishers('ee_seg/mask') > 0
                           and (bool(self._presence.servers) or not values['offboard']))
            if self._ready:
                self._say('ready')
        if self._last is None:
            return
        if self._last > self._progress_at and now - self._progress_at >= PROGRESS_S:
            self._progress_at = now
            self._say('progress')
        finals, traces = self._counts['final'], self._counts['trace']
        enough = values['frames'] and finals >= values['frames'] and traces >= values['frames']
        if enough or (values['idle_s'] and now - self._last > values['idle_s']):
            self.done.set()


def main(args=None) -> int:
    """Run the recorder until it has enough, or is told to stop; the exit status of the process."""
    return run(Recorder, 'recorder', args)
