# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`ee_seg bench runtime`: what the onboard node adds to the bare engine, its memory, and its time to the first mask.

Node and engine take turns over the same images in one run, so that both see the same machine. Both get an image per
period: an engine that is called without a pause finds warmer caches than a robot's ever does.
"""
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2

from ee_seg_ros.evaluation import recording
from ee_seg_ros.evaluation.evaluate import samples_of
from ee_seg_ros.evaluation.machine import machine, peak_memory_bytes
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.processes import ChildError, Children

ROUNDS = 4
RATE = 10.0          # Hz
CRITERION, OPERATING_POINT, THREADS = 'entropy', 'balanced', 2
MASK_SIZE = 480, 360     # of `postprocess_ms`
START_S, MASK_S = 60.0, 30.0


def write_rounds(samples, count: int, folder: Path) -> list:
    """Write the images as BMP (quick to read) into one folder per round; returns [(folder, number of images)]."""
    rounds = min(ROUNDS, count)
    places = [index * rounds // count for index in range(count)]
    for index, (image, _) in enumerate(samples):
        target = folder / f'round{places[index]}'
        target.mkdir(exist_ok=True)
        cv2.imwrite(str(target / f'{index:05d}.bmp'), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return [(folder / f'round{number}', places.count(number)) for number in range(rounds)]


class BareEngine:
    """The engine without a node around it: what the node's time is compared with."""

    def __init__(self, bundle: Bundle):
        self._engine = Engine(bundle, threads=THREADS, part='onboard')
        self._thresholds = bundle.thresholds(CRITERION, OPERATING_POINT)
        self.postprocess_ms = []

    def run(self, folder: Path) -> list:
        """Milliseconds from image to mask, for every image of a folder, one image per period."""
        times = []
        began = time.perf_counter()
        for number, path in enumerate(sorted(folder.glob('*.bmp'))):
            image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            time.sleep(max(0.0, began + number / RATE - time.perf_counter()))
            start = time.perf_counter()
            result = self._engine.segment(image, CRITERION, self._thresholds)
            result.output.mask(image.shape[1], image.shape[0])
            times.append((time.perf_counter() - start) * 1e3)
            self._postprocess(result)
        return times

    def _postprocess(self, result):
        """Time the mask alone, on one core."""
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        start = time.perf_counter()
        result.output.mask(*MASK_SIZE)
        self.postprocess_ms.append((time.perf_counter() - start) * 1e3)
        cv2.setNumThreads(threads)


class Node:
    """The running onboard node, with a recorder; the camera comes anew for each round.

    process_id, started (seconds of the system clock): of the onboard node's process.
    """

    def __init__(self, children: Children, bundle: Bundle, folder: Path):
        self._children, self._folder = children, folder
        self._bundle = str(bundle.path.resolve())
        self._done, self._logs = 0, []

    def start(self, images: tuple) -> None:
        """Start everything and run the first round; images: (folder, number)."""
        recorder = self._children.start('recorder', {'out': str(self._folder), 'idle_s': 0.0, 'save_masks': False,
                                                     'offboard': False}, listen=True)
        # The recorder opens this file when it begins to listen: from here on it misses no mask.
        self._until((self._folder / 'diagnostics.jsonl').exists, START_S, 'the recorder did not start')
        self._camera(images)
        onboard = self._children.start('onboard', {
            'bundle': self._bundle, 'criterion': CRITERION, 'operating_point': OPERATING_POINT, 'finish': 'never',
            'threads': THREADS})
        self._recorder, self.process_id, self.started = recorder, onboard.process.pid, onboard.started
        self._finish_round(images[1])

    def round(self, images: tuple) -> None:
        """Run one more round."""
        self._camera(images)
        self._finish_round(images[1])

    def _camera(self, images):
        folder, count = images
        self._logs.append(self._folder / f'camera{len(self._logs)}.jsonl')
        self._children.start('camera', {'source': str(folder), 'frames': count, 'rate': RATE,
                                        'log': str(self._logs[-1])})

    def _finish_round(self, count):
        """Wait until the camera is out of images and the masks of all have come, or nothing comes any more."""
        camera = self._children.children['camera'].process
        self._until(lambda: camera.poll() is not None, START_S + count / RATE, 'the camera did not end')
        self._children.check('camera')
        self._done += count
        masks = 0

        def enough():
            nonlocal masks
            while not self._recorder.events.empty():
                masks = self._recorder.events.get().get('final_masks', masks)
            return masks >= self._done * 0.95
        self._until(enough, MASK_S, 'the onboard node dropped more than 5 % of the images')

    def _until(self, condition, seconds, otherwise):
        deadline = time.monotonic() + seconds
        while not condition():
            self._children.check('camera')
            if time.monotonic() > deadline:
                logs = '\n'.join(f'{child.log}:\n{child.last_words(4)}' for child in self._children.children.values())
                raise ChildError(f'{otherwise} within {seconds:.0f} s; the ends of the logs:\n{logs}')
            time.sleep(0.05)

    def rounds(self) -> list:
        """After the recorder has ended: the frames of each round, as lists of `recording.Frame`."""
        return [recording.load(log, self._folder) for log in self._logs]


def measure(name_or_path: str, dataset: str, root: str | None, split: str, limit: int, out: Path,
            report: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Run the bench; returns `runtime.json`: machine, rows (one per round), claims.

    Raises ValueError or FileNotFoundError for wrong input, ChildError where a node fails.
    """
    bundle = Bundle.load(name_or_path)
    count, samples = samples_of(dataset, root, split, limit)
    bare, bare_times = BareEngine(bundle), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rounds = write_rounds(samples, count, folder)
        recorded = folder / 'recording'
        recorded.mkdir()
        with Children(out / 'logs', 101 + os.getpid() % 100) as children:
            node = Node(children, bundle, recorded)
            for number, images in enumerate(rounds):
                node.round(images) if number else node.start(images)
                bare_times.append(bare.run(images[0]))
                report(number + 1, len(rounds))
            memory = peak_memory_bytes(node.process_id)
        frames = node.rounds()
    return _document(bundle, frames, bare_times, bare.postprocess_ms, memory, node.started)


def _document(bundle, frames, bare_times, postprocess, memory, started):
    rows, all_node, all_bare = [], [], []
    for number, (of_round, bare) in enumerate(zip(frames, bare_times)):
        inside = [value for value in (frame.number('mask_ms') for frame in of_round) if value is not None]
        if not inside:
            raise ChildError(f'no trace of round {number} came from the onboard node')
        rows.append({'round': number, 'images': len(bare), 'node_mask_ms': median(inside), 'bare_ms': median(bare),
                     'node_over_bare': median(inside) / median(bare)})
        all_node += inside
        all_bare += bare
    first = min(frame.record['mask_at'] for frame in frames[0] if frame.received('mask')) / 1e9
    return {
        'machine': machine(), 'rows': rows,
        'claims': {'node_over_bare_runtime': median(all_node) / median(all_bare), 'postprocess_ms': median(postprocess),
                   'onboard_rss_mb': memory / 1e6, 'first_mask_s': first - started},
        'bundle': bundle.name, 'bundle_fingerprint': bundle.fingerprint, 'criterion': CRITERION,
        'operating_point': OPERATING_POINT, 'threads': THREADS, 'rate': RATE}
