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
"""`ee_seg bench runtime`: what the onboard node adds to the bare engine, its memory, and its time to the first mask.

Both work on the same images, in turn: the node when the camera publishes one, the engine in this process half a period
later. So both see the same machine, and find it equally cold. And both do the same: what the node decides by itself,
whose heads judge an image, is decided for the engine outside of its time.
"""
import json
import os
import queue
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2

from ee_seg_ros.data.datasets import samples_of
from ee_seg_ros.evaluation import recording
from ee_seg_ros.evaluation.machine import machine, peak_memory_bytes
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.experts import AUTO, ExpertChooser
from ee_seg_ros.processes import ChildError, Children

RATE = 4.0           # Hz; half a period is longer than either needs
CRITERION, OPERATING_POINT, THREADS = 'region_change', 'balanced', 2
MASK_SIZE = 480, 360     # of `postprocess_ms`
ROWS = 4
START_S, QUIET_S = 60.0, 3.0


class BareEngine:
    """The engine without a node around it: by index of the image, its times in ms and the (expert, exit) it used."""

    def __init__(self, bundle: Bundle):
        self._engine = Engine(bundle, threads=THREADS, part='onboard')
        self._chooser = ExpertChooser(bundle)
        self._thresholds = {expert: bundle.thresholds(CRITERION, OPERATING_POINT, expert)
                            for expert in ('', *bundle.experts)}
        self.times, self.ran, self._outputs = {}, {}, []

    def run(self, index: int, image, at: float) -> None:
        """Segment an image at a time (seconds of the system clock): pre-processing, inference, mask.

        Which expert's heads judge it is found out before, as the node does it.
        """
        expert = self._chooser.choose(image, AUTO).expert
        time.sleep(max(0.0, at - time.time()))
        start = time.perf_counter()
        result = self._engine.segment(image, CRITERION, self._thresholds[expert], expert=expert)
        result.output.mask(image.shape[1], image.shape[0])
        self.times[index] = (time.perf_counter() - start) * 1e3
        self.ran[index] = expert, result.exit_name
        self._outputs = self._outputs[-31:] + [result.output]

    def postprocess_ms(self) -> float:
        """Median time of the mask alone, on one core, over the latest images."""
        threads, times = cv2.getNumThreads(), []
        cv2.setNumThreads(1)
        for output in self._outputs:
            start = time.perf_counter()
            output.mask(*MASK_SIZE)
            times.append((time.perf_counter() - start) * 1e3)
        cv2.setNumThreads(threads)
        return median(times)


def _write_images(samples, folder):
    """Write images as BMP, which is quick to read; returns how many."""
    folder.mkdir()
    count = 0
    for count, (image, _) in enumerate(samples, start=1):
        cv2.imwrite(str(folder / f'{count - 1:05d}.bmp'), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return count


def _read_image(folder, index):
    return cv2.cvtColor(cv2.imread(str(folder / f'{index:05d}.bmp')), cv2.COLOR_BGR2RGB)


def _first_mask(children, recorder, camera):
    """Wait for the first mask; then end the camera that was there for it alone."""
    deadline = time.monotonic() + START_S
    while True:
        children.check()
        try:
            if recorder.events.get(timeout=0.1).get('masks'):
                break
        except queue.Empty:
            if time.monotonic() > deadline:
                raise ChildError(f'no mask within {START_S:.0f} s; the end of the onboard log:\n'
                                 + children.children['onboard'].last_words()) from None
    children.end(camera)


def _take_turns(children, bare, folder, log, count, report):
    """Run the bare engine on each image half a period after the camera has published it."""
    camera, done = children.children['camera'].process, 0
    while True:
        ended = camera.poll() is not None
        lines = log.read_text().splitlines() if log.is_file() else []
        if len(lines) == done:
            if ended:
                return
            children.check('camera')
            time.sleep(0.01)
            continue
        entry, done = json.loads(lines[-1]), len(lines)    # the newest: never run into the node's next turn
        bare.run(entry['index'], _read_image(folder, entry['index']), entry['stamp'] / 1e9 + 0.5 / RATE)
        report(done, count)


def _last_masks(recorder):
    """Wait until no more masks come."""
    last = time.monotonic()
    while time.monotonic() - last < QUIET_S:
        try:
            recorder.events.get(timeout=0.1)
            last = time.monotonic()
        except queue.Empty:
            pass


def measure(name_or_path: str, dataset: str, root: str | None, split: str, limit: int, out: Path,
            report: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Run the bench; returns `runtime.json`: machine, rows (parts of the run), claims.

    report: called with (images done, images in all). Raises ValueError or FileNotFoundError for wrong input,
    ChildError where a node fails.
    """
    bundle = Bundle.load(name_or_path)
    _, samples = samples_of(dataset, root, split, limit)
    bare = BareEngine(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        images, recorded = Path(scratch) / 'images', Path(scratch) / 'recording'
        count = _write_images(samples, images)
        logs = [recorded / 'first.jsonl', recorded / 'camera.jsonl']
        with Children(out / 'logs', 101 + os.getpid() % 100) as children:
            recorder = children.start('recorder', {'out': str(recorded), 'idle_s': 0.0, 'save_masks': False,
                                                   'offboard': False}, listen=True)
            camera = children.start('camera', {'source': str(images), 'loop': True, 'log': str(logs[0])})
            onboard = children.start('onboard', {
                'bundle': str(bundle.path.resolve()), 'criterion': CRITERION, 'operating_point': OPERATING_POINT,
                'finish': 'never', 'threads': THREADS})
            _first_mask(children, recorder, camera)
            children.start('camera', {'source': str(images), 'rate': RATE, 'log': str(logs[1])})
            _take_turns(children, bare, images, logs[1], count, report)
            _last_masks(recorder)
            memory = peak_memory_bytes(onboard.process.pid)
        first, frames = (recording.load(log, recorded) for log in logs)
    arrived = min(frame.record['mask_at'] for frame in first if frame.received('mask')) / 1e9
    pairs = [(frame.number('mask_ms'), bare.times[frame.index]) for frame in frames
             if frame.number('mask_ms') is not None and frame.index in bare.times
             and bare.ran[frame.index] == (frame.trace().get('expert'), frame.trace().get('exit'))]
    if not pairs:
        raise ChildError(f'the onboard node segmented none of {count} images as the bare engine did')
    return {
        'machine': machine(), 'rows': [_row(*part) for part in _parts(pairs)],
        'claims': {'node_over_bare_runtime': _row(0, pairs)['node_over_bare'],
                   'postprocess_ms': bare.postprocess_ms(), 'onboard_rss_mb': memory / 1e6,
                   'first_mask_s': arrived - onboard.started},
        'bundle': bundle.name, 'bundle_fingerprint': bundle.fingerprint, 'criterion': CRITERION,
        'operating_point': OPERATING_POINT, 'threads': THREADS, 'rate': RATE, 'images': count}


def _parts(pairs):
    """The run in up to ROWS parts, one after the other: [(number, pairs)]."""
    rows = min(ROWS, len(pairs))
    return [(row, pairs[len(pairs) * row // rows:len(pairs) * (row + 1) // rows]) for row in range(rows)]


def _row(number, pairs):
    node, bare = (median(times) for times in zip(*pairs))
    return {'part': number, 'images': len(pairs), 'node_mask_ms': node, 'bare_ms': bare, 'node_over_bare': node / bare}
