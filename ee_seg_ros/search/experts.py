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
"""Temperatures, curves and operating points of a bundle's experts, measured on distorted images."""
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ee_seg_ros.data.distortions import DISTORTIONS, distort
from ee_seg_ros.evaluation.evaluate import Observations, cascade, observe
from ee_seg_ros.evaluation.metrics import confusion, mean_iou
from ee_seg_ros.inference.bundle import OPERATING_POINTS, Bundle
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.search.calibration import ALLOWED_LOSS, STATED, curve, levels, settled_mious

# Of the images in pixels of the network input, see `inference.frame.sharpened`; the last one smooths.
SHARPENING = (None, {'sigma': 3.0, 'amount': 1.0}, {'sigma': 3.0, 'amount': 2.0}, {'sigma': 3.0, 'amount': 4.0},
              {'sigma': 1.0, 'amount': -0.6})
KEPT = 0.4    # of the broken promises of the exits' own heads: fewer than half, for these images are few


def distorted(samples: Iterable, family: str) -> Iterator:
    """(image, labels), each distorted: by all distortions of a family, at all their levels, in turn."""
    settings = [(kind.name, level) for kind in DISTORTIONS.values() if kind.family == family for level in kind.levels]
    for seed, (image, labels) in enumerate(samples):
        yield distort(image, *settings[seed % len(settings)], seed), labels


def broken_share(bundle: Bundle, observed: Observations, criterion: str, thresholds: list, promised: float) -> float:
    """Share of the images settled onboard whose mIoU is below what is promised, 0..1; 0 where none settles."""
    mious = settled_mious(bundle, observed, criterion, thresholds)
    return float((mious < promised).mean()) if len(mious) else 0.0


def expert_points(bundle: Bundle, criterion: str, points: list, observed: Observations, before: Observations) -> dict:
    """An expert's operating points of a criterion, each with the promise that the exits' own heads make when clean.

    Of `points` (`calibration.levels`) that lose no more than is allowed against the whole network and settle at least
    as many of these images onboard as the exits' own heads do (`before`), the one of the best onboard masks that breaks
    no more than `KEPT` of the share of promises that these break; where none does, the one that breaks the fewest. The
    lowest cost among equals. An own head that is sure of what it cannot see is not to be outdone in that, only in being
    right.
    """
    found = {}
    for name, stated in bundle.document['criteria'][criterion]['operating_points'].items():
        if name not in OPERATING_POINTS:
            continue
        own = cascade(bundle, before, criterion, stated['thresholds'])
        able = [point for point in points if point['forwarded_share'] <= own['forwarded_share'] + 1e-9]
        able = [point for point in able if point['loss_bound'] <= ALLOWED_LOSS[name]] or able
        broken = {id(point): broken_share(bundle, observed, criterion, point['thresholds'], stated['promise'])
                  for point in able}
        own_broken = broken_share(bundle, before, criterion, stated['thresholds'], stated['promise'])
        fewest = max(KEPT * own_broken, min(broken.values()))
        best = min((point for point in able if broken[id(point)] <= fewest),
                   key=lambda point: (-point['onboard_miou'], broken[id(point)], point['mean_macs']))
        found[name] = {
            **{key: best[key] for key in STATED}, 'promise': stated['promise'], 'broken': broken[id(best)],
            'without_expert': {
                **{key: own[key] for key in ('miou', 'mean_macs', 'onboard_miou', 'forwarded_share')},
                'broken': own_broken}}
    return found


def choose_sharpening(bundle: Bundle, family: str, samples: list, threads: int,
                      report: Callable[[int, int], None]) -> None:
    """Store how an expert's images are sharpened: as it gives the best onboard exits on distorted (image, labels).

    A backbone that has learned nothing of distortions sees more in an image whose blur is partly undone. By the mean
    mIoU of the onboard exits.
    """
    expert, classes = bundle.document['experts'][family], len(bundle.classes)
    engine, tried = Engine(bundle, threads=threads, part='onboard'), []
    for number, sharpening in enumerate(SHARPENING):
        expert['sharpening'], total = sharpening, 0
        for done, (image, labels) in enumerate(distorted(samples, family), start=1):
            total = total + np.array([confusion(labels, output.mask(*labels.shape[::-1]), classes)
                                      for output in engine.segment(image, 'never', expert=family).outputs])
            report(number * len(samples) + done, len(SHARPENING) * len(samples))
        tried.append(float(np.mean([mean_iou(matrix) for matrix in total])))
    expert['sharpening'] = SHARPENING[int(np.argmax(tried))]
    expert['sharpening_tried'] = [{'sharpening': each, 'miou': miou} for each, miou in zip(SHARPENING, tried)]


def calibrate_experts(bundle: Bundle, samples: list, threads: int = 2,
                      report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Measure all experts of a calibrated bundle on distorted copies of (image, labels); nothing is written yet.

    The criteria's models (`gain`, limits of classes) are those of the bundle: they speak of calibrated probabilities,
    and each expert has temperatures of its own. Thresholds and curves of the criteria that stop whole frames are
    measured; for those that stop pixels one by one the bundle's stand.
    """
    from ee_seg_ros.search.temperature import calibrate_temperatures, labelled_pixels
    total, criteria = len(samples), bundle.document['criteria']
    for family in bundle.experts:
        expert = bundle.document['experts'][family]
        expert.pop('calibration', None)    # by which frames would not be forwarded
        choose_sharpening(bundle, family, samples, threads, report)
        found = calibrate_temperatures(labelled_pixels(Engine(bundle, threads=threads), distorted(samples, family),
                                                       lambda done: report(done, 3 * total), family))
        for exit_, temperature in zip(bundle.exits, found['temperatures']):
            if exit_.name in expert['exits']:
                expert['exits'][exit_.name]['temperature'] = temperature
        engine = Engine(bundle, threads=threads)
        before = observe(engine, distorted(samples, family), lambda done: report(total + done, 3 * total), pixels=False)
        observed = observe(engine, distorted(samples, family), lambda done: report(2 * total + done, 3 * total), family,
                           pixels=False)
        expert['calibration'] = {
            'images': total, 'exits': [
                {'name': exit_.name, 'miou': mean_iou(matrix), 'miou_without_expert': mean_iou(own)}
                for exit_, matrix, own in zip(bundle.exits, observed.matrices.sum(0), before.matrices.sum(0))]}
        expert['criteria'] = {}
        for criterion, entry in criteria.items():
            if criterion not in observed.scores:
                continue
            points = levels(bundle, observed, criterion)
            expert['criteria'][criterion] = {
                'direction': entry['direction'], 'thresholds': entry['thresholds'], 'curve': curve(points),
                'operating_points': expert_points(bundle, criterion, points, observed, before)}
