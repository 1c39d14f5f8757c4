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
"""What a bundle needs to stop single pixels: limits of the classes, which cells to forward, their mean features."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

from ee_seg_ros.data.labelled import UNLABELLED
from ee_seg_ros.evaluation.evaluate import to_the_end
from ee_seg_ros.evaluation.metrics import confusion, mean_iou
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.outputs import GRID
from ee_seg_ros.search.gain import altered

UNIFORM = 0.998    # ADP-C's limit for all classes
PAPER = (0.99, UNIFORM)    # CBT's easiest and hardest class on Cityscapes
# Tried on images that nothing was trained on: the limit of the class told best (that of the one told worst is ADP-C's),
# and the mean doubt from which on a cell is worth running the stages of each side.
EASIEST = (0.9, 0.95, 0.98)
WORTH = ((0.0, 0.06), (0.0, 0.1), (0.0, 0.13), (0.0, 0.15))
# What is sent: limits of both (above 1: cells of that class always), margin on the grid, worth of a cell.
SEND = tuple((*ends, margin, worth) for worth in (0.0, 0.06, 0.1) for margin in (0, 1, 2)
             for ends in ((0.5, 1.01), (0.8, 1.01), (0.8, 0.8)))
COPIES = 3    # altered copies of each image: a few dozen frames of one drive say little about others
# mIoU that class limits, and cells not sent, may lose there; of the former's 0.006 in CBT's paper something is left for
# images that nothing was fitted on.
ALLOWED_LOSS = 0.005, 0.0025


@dataclass(frozen=True)
class ClassStatistics:
    """Of n images: probabilities float64 (exits, classes, classes), row k the mean softmax over pixels of class k.

    means: feature tensor -> uint8 (classes, channels), mean levels of each class; {} without a split. shares: float64
    (classes,), of the labelled pixels.
    """

    probabilities: np.ndarray
    means: dict
    shares: np.ndarray


def _labels_at(labels, placement, height, width, stride):
    """Labels at every `stride`-th pixel of the network input of (height, width); unlabelled outside the image."""
    rows, columns = placement.content_height // stride, placement.content_width // stride
    whole = np.full((height // stride, width // stride), UNLABELLED, np.uint8)
    whole[:rows, :columns] = cv2.resize(labels, (columns, rows), interpolation=cv2.INTER_NEAREST)
    return whole


def class_statistics(engine: Engine, samples: Iterable,
                     report: Callable[[int], None] = lambda done: None) -> ClassStatistics:
    """Statistics of the classes over (image, labels) of the training set; engine with part 'all'.

    Source: CBT (Gormez and Koyuncu, arXiv 2210.15621), whose p_(n,k) is the mean softmax of exit n over the training
    pixels of class k; here on the grid of 8 pixels, at the calibrated temperature. A class without pixels has even
    probabilities, and middling means.
    """
    bundle, classes = engine.bundle, len(engine.bundle.classes)
    sums, counts = np.zeros((len(bundle.exits), classes, classes)), np.zeros(classes)
    totals = {name: np.zeros((classes, bundle.tensors[name]['shape'][1])) for name in bundle.feature_tensors}
    seen = {name: np.zeros(classes) for name in totals}
    for done, (image, labels) in enumerate(samples, start=1):
        result = engine.segment(image, 'never')
        outputs = list(result.outputs)
        if bundle.split is not None:
            features = engine.encode(result)
            outputs += engine.finish(features, result.placement).outputs
            for name, tensor in features.items():
                at = _labels_at(labels, result.placement, bundle.height, bundle.width,
                                bundle.height // tensor.shape[2])
                for number in range(classes):
                    totals[name][number] += tensor[0][:, at == number].sum(1)
                    seen[name][number] += np.count_nonzero(at == number)
        at = _labels_at(labels, result.placement, bundle.height, bundle.width, GRID)
        at = at[:outputs[0].grid_logits.shape[1], :outputs[0].grid_logits.shape[2]]
        for index, output in enumerate(outputs):
            probabilities = output.grid_probabilities
            for number in range(classes):
                sums[index, number] += probabilities[:, at == number].sum(1)
        counts += np.bincount(at[at < classes], minlength=classes)
        report(done)
    middle = (bundle.document['codec'] or {'levels': 2})['levels'] // 2
    return ClassStatistics(
        np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], 1 / classes),
        {name: np.where(seen[name][:, None] > 0, totals[name] / np.maximum(seen[name], 1)[:, None], middle
                        ).round().astype(np.uint8) for name in totals}, counts / max(counts.sum(), 1))


def class_weights(shares: np.ndarray) -> np.ndarray:
    """float64 (classes,): what doubt about a pixel of a class weighs; 1 for the mean pixel.

    shares: float (classes,), of the pixels. One over the root of the share: a pixel of a class counts in mIoU like one
    over the share, but of rare classes more is told wrong and stays so. A class without pixels weighs as the rarest.
    """
    weights = np.maximum(shares, shares[shares > 0].min()) ** -0.5
    return weights / (weights * shares).sum()


def class_limits(probabilities: np.ndarray, easiest: float, hardest: float) -> np.ndarray:
    """T_k, float64 (classes,): between `easiest` for the class told best from the others and `hardest`.

    probabilities: as of `ClassStatistics`. P_k = mean over exits of p_(n,k); T_k = largest(P_k) - second largest(P_k),
    then scaled: (1 - (T_k - min T) / (max T - min T)) (hardest - easiest) + easiest. Source: CBT (arXiv 2210.15621).
    """
    ordered = np.sort(probabilities.mean(0), axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    spread = max(np.ptp(margins), 1e-9)
    return (1 - (margins - margins.min()) / spread) * (hardest - easiest) + easiest


def _measure(engine, samples, criterion, limits=None):
    """(mIoU, mean multiply-accumulates, mean bytes) of images that run to the end unless all their pixels stop."""
    classes, total, macs, payloads = len(engine.bundle.classes), 0, [], []
    for image, labels in samples:
        frame = to_the_end(engine, image, criterion, limits=limits)
        height, width = labels.shape
        total = total + confusion(labels, frame.mask(width, height), classes)
        macs.append(frame.macs_at[-1])
        payloads.append(len(frame.payload(engine)))
    return mean_iou(total), float(np.mean(macs)), float(np.mean(payloads))


def fit_pixels(engine: Engine, statistics: ClassStatistics, samples: list,
               report: Callable[[int], None] = lambda done: None) -> dict:
    """Choose class limits and which cells to send, on images that nothing was trained on; what bundle.json stores.

    Exits: all look at pixels, or only the last one onboard and those behind it: whichever costs fewer
    multiply-accumulates with ADP-C's uniform limit and loses at most `ALLOWED_LOSS[0]` of mIoU against the other. Class
    limits: of all (limit of the easiest class, worth of a cell on either side) tried, those of the fewest
    multiply-accumulates that lose at most `ALLOWED_LOSS[0]` against the uniform limit. Cells to send: the class limits,
    margin and worth of the fewest bytes that lose at most `ALLOWED_LOSS[1]` against all cells. All of it is written
    into the engine's bundle at once. samples: (image, labels).
    """
    bundle, rng = engine.bundle, np.random.default_rng(0)
    samples = [each for sample in samples for each in (sample, *(altered(*sample, rng) for _ in range(COPIES)))]
    pixels = {
        'limits': {'class_threshold': [UNIFORM] * len(bundle.classes), 'uniform': [UNIFORM] * len(bundle.classes)},
        'weights': class_weights(statistics.shares).round(4).tolist(), 'send': [1.0] * len(bundle.classes),
        'send_margin': 0, 'send_worth': 0.0, 'worth': {},
        'paper_limits': class_limits(statistics.probabilities, *PAPER).round(6).tolist()}
    bundle.document['pixels'] = pixels
    done, tried = 0, []

    def measure(*arguments):
        nonlocal done
        found = _measure(engine, samples, *arguments)
        done += 1
        report(done)
        return found
    exits = [exit_.name for exit_ in bundle.judged_exits]
    later = exits[max(0, sum(exit_.onboard for exit_ in bundle.judged_exits) - 1):] if bundle.split else exits
    looked = []
    for names in (exits, later):
        pixels['exits'] = names
        looked.append((names, *measure('uniform')[:2]))
    most = max(entry[1] for entry in looked)
    pixels['exits'], *uniform = min((entry for entry in looked if entry[1] >= most - ALLOWED_LOSS[0]),
                                    key=lambda entry: entry[2])
    for worth, easiest in product(WORTH, EASIEST):
        pixels['worth']['class_threshold'] = list(worth)
        limits = class_limits(statistics.probabilities, easiest, UNIFORM)
        tried.append((worth, easiest, *measure('class_threshold', limits)))
    able = [entry for entry in tried if entry[2] >= uniform[0] - ALLOWED_LOSS[0]] or [max(tried, key=lambda e: e[2])]
    worth, easiest, miou, macs, _ = min(able, key=lambda entry: entry[3])
    pixels['worth']['class_threshold'] = list(worth)
    pixels['limits']['class_threshold'] = class_limits(statistics.probabilities, easiest, UNIFORM).round(6).tolist()
    pixels['fit'] = {'uniform': {'miou': uniform[0], 'mean_macs': uniform[1]},
                     'class_threshold': {'miou': miou, 'mean_macs': macs, 'easiest': easiest}}
    if bundle.split is not None:
        _fit_cells(bundle, pixels, statistics, measure)
    return pixels


def _fit_cells(bundle, pixels, statistics, measure):
    """The class limits and the margin of the fewest bytes that lose little; all cells where each loses more.

    Most of a frame is of classes that are told well; what is told badly is the smaller part, and there a label that is
    sure is often wrong all the same. So the limits lie apart as those of `class_limits`.
    """
    tried = []
    # No probability exceeds the first limits: all cells.
    for easiest, hardest, margin, worth in ((2.0, 2.0, 0, 0.0), *SEND):
        limits = class_limits(statistics.probabilities, easiest, hardest).round(6).tolist()
        pixels['send'], pixels['send_margin'], pixels['send_worth'] = limits, margin, worth
        miou, _, payload = measure('never')
        tried.append({'miou': miou, 'bytes': payload, 'limits': limits, 'easiest': easiest, 'hardest': hardest,
                      'margin': margin, 'worth': worth})
    able = [entry for entry in tried if entry['miou'] >= tried[0]['miou'] - ALLOWED_LOSS[1]]
    best = min(able, key=lambda entry: entry['bytes'])
    pixels['send'], pixels['send_margin'], pixels['send_worth'] = best.pop('limits'), best['margin'], best['worth']
    pixels['fit'] |= {'all_cells': {key: tried[0][key] for key in ('miou', 'bytes')}, 'cells': best}


def steps(bundle: Bundle) -> int:
    """How often `fit_pixels` goes through its images."""
    return 2 + len(EASIEST) * len(WORTH) + (1 + len(SEND) if bundle.split else 0)
