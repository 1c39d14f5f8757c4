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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ee_seg_ros.data.distortions import DISTORTIONS, distort
from ee_seg_ros.evaluation.evaluate import Ends, Observations, cascade, exits_taken, observe
from ee_seg_ros.evaluation.metrics import confusion, mean_iou
from ee_seg_ros.inference.bundle import OPERATING_POINTS, Bundle
from ee_seg_ros.inference.criteria import CRITERIA, Criterion
from ee_seg_ros.inference.detector import Detector
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.search.calibration import RESAMPLES, curve
from ee_seg_ros.search.cascades import threshold_levels

AS_IT_IS = {'smoothing': None, 'deblurring': False}
SMOOTHED = {'smoothing': {'sigma': 1.0, 'share': 0.6}, 'deblurring': False}    # see `inference.frame.smoothed`
DEBLURRED = {'smoothing': None, 'deblurring': True}    # see `inference.deblur`
IN_VAIN = 0.001    # mIoU for which nothing is forwarded
LIKELY = 0.95    # share of the resamples of the images in which an expert settles no fewer than the own heads


def copies(count: int, family: str) -> list:
    """[(image, distortion, level)]: each of `count` images in all of a family's distortions and levels."""
    settings = [(kind.name, level) for kind in DISTORTIONS.values() if kind.family == family for level in kind.levels]
    return [(index, *setting) for index in range(count) for setting in settings]


def distorted(samples: Sequence, family: str) -> Iterator:
    """(image, labels) of each of `copies`; samples: (image, labels) pairs."""
    for index, name, level in copies(len(samples), family):
        yield distort(samples[index][0], name, level, index), samples[index][1]


def strengths(bundle: Bundle, samples: Sequence, family: str) -> np.ndarray:
    """float64 (n,): how strong the detector takes each of `copies` for, as it does on the robot, 0..1.

    0 where it sees another family, as of the mildest; and for all where the bundle has no detector.
    """
    detector = Detector(bundle) if bundle.detector is not None else None
    seen = [detector.detect(image) if detector else None for image, _ in distorted(samples, family)]
    return np.array([found.level if found and found.family == family else 0.0 for found in seen])


def per_strength(scores: np.ndarray, strength: np.ndarray) -> float:
    """What a score gets added per strength for both to count alike: in units of their standard deviations.

    scores: float (n,), not finite where there is none. strength: (n,). Which masks of an expert are good, either tells
    about as well as the other, and both together better; where there is little to fit on, equal weights of standardised
    variables predict new cases as well as fitted ones (Dawes, American Psychologist 1979).
    """
    known = np.isfinite(scores)
    spread = strength[known].std() if known.any() else 0.0
    return round(float(scores[known].std() / spread), 6) if spread else 0.0


def choose_forwarding(bundle: Bundle, observed: Observations, strength: np.ndarray) -> dict | None:
    """Up to which strength an expert's frames are forwarded, and where they end then; None: none is forwarded.

    Exits behind the split may have no head of its family, and the deeper features say ever less of what is distorted
    ever more. Where all frames above some strength keep the last onboard exit's mask, there is a best mIoU: found are
    the first exit, and of it the least strength, that give hardly less (`IN_VAIN`). observed: of frames that ran
    through all exits. strength: float (n,), of each.
    """
    order, names = np.argsort(strength, kind='stable'), [exit_.name for exit_ in bundle.exits]
    # Of any criterion that stops whole frames: run to the end they are all alike.
    matrices = observed.ends[next(iter(observed.ends))].matrices if observed.ends else observed.matrices
    kept = matrices[order, len(bundle.onboard_exits) - 1]
    ends = np.flatnonzero(np.diff(strength[order], append=np.inf) > 0)    # of frames that are alike strong the last one
    without, tried = mean_iou(kept.sum(0)), {}
    for exit_ in bundle.offboard_exits if bundle.split else ():
        gains = np.cumsum(matrices[order, names.index(exit_.name)] - kept, 0)
        tried[exit_.name] = np.array([mean_iou(kept.sum(0) + gains[end]) for end in ends])
    enough = max((mious.max() for mious in tried.values()), default=0.0) - IN_VAIN
    if enough <= without:
        return None
    last = next(name for name, mious in tried.items() if mious.max() >= enough)
    place = int(np.argmax(tried[last] >= enough))
    return {'up_to': float(strength[order[ends[place]]]), 'last_exit': last, 'miou': float(tried[last][place]),
            'miou_without': without}


def as_run(bundle: Bundle, observed: Observations, strength: np.ndarray) -> Observations:
    """What was seen of an expert's frames, which ran through all exits, as it is where nothing runs in vain.

    They end at `Bundle.last_exit` at the latest, and at the last one onboard where forwarding does not pay.
    """
    names = [exit_.name for exit_ in bundle.exits]
    last = np.where([bundle.refines(observed.expert, each) for each in strength],
                    names.index(bundle.last_exit(observed.expert)), len(bundle.onboard_exits) - 1)
    rows, places = np.arange(len(strength))[:, None], np.minimum(np.arange(len(names)), last[:, None])

    def ends(criterion):
        whole = observed.ends.get(criterion) or Ends(
            observed.matrices, observed.macs_of(bundle, criterion), np.zeros(len(observed.matrices), int))
        return replace(whole, matrices=whole.matrices[rows, places], macs=whole.macs[rows, places])
    return replace(observed, ends={criterion: ends(criterion) for criterion in observed.scores})


def kept(rule: Criterion, scores: np.ndarray, mious: np.ndarray, thresholds: Sequence[float], promise: float) -> tuple:
    """(settled onboard, so but broken): bool (n,) each; broken: its mIoU is below the promise.

    scores: (n, judged exits). mious: float (n, judged exits onboard), of each image at each exit.
    """
    taken = exits_taken(rule, scores, thresholds)
    settled = taken < mious.shape[1]
    return settled, settled & (mious[np.arange(len(taken)), np.minimum(taken, mious.shape[1] - 1)] < promise)


def expert_points(bundle: Bundle, criterion: str, points: list, observed: Observations, before: Observations,
                  images: np.ndarray) -> dict:
    """An expert's operating points of a criterion, each with the promise that the exits' own heads make when clean.

    Of `points` (dicts with `thresholds`, and `evaluate.cascade` of them), those that settle no fewer onboard than the
    exits' own heads do at theirs (`before`), in `LIKELY` of the resamples of the images; and of these the one that
    breaks the smallest share of its promises. The best onboard masks, then the lowest cost, among equals. images: int
    (n,), which image a row of `observed` and of `before` shows.
    """
    rule, onboard = CRITERIA[criterion], sum(exit_.onboard for exit_ in bundle.judged_exits)
    own_mious, mious = (np.array([[mean_iou(matrix) for matrix in row] for row in each.matrices[:, :onboard]])
                        for each in (before, observed))
    count = images.max() + 1
    weights = np.random.default_rng(0).multinomial(count, [1 / count] * count, RESAMPLES)[:, images]
    found = {}
    for name, stated in bundle.document['criteria'][criterion]['operating_points'].items():
        if name not in OPERATING_POINTS:
            continue
        own = cascade(bundle, before, criterion, stated['thresholds'])
        own_settled, own_broken = kept(rule, before.scores[criterion], own_mious, stated['thresholds'],
                                       stated['promise'])
        settled, broken = (np.array(each) for each in zip(*(
            kept(rule, observed.scores[criterion], mious, point['thresholds'], stated['promise']) for point in points)))
        more = (settled.astype(int) - own_settled) @ weights.T
        able = np.flatnonzero(np.quantile(more, 1 - LIKELY, axis=1) >= 0)
        shares = broken.sum(1) / np.maximum(settled.sum(1), 1)
        best = min(able, key=lambda index: (shares[index], -points[index]['onboard_miou'], points[index]['mean_macs']))
        found[name] = {
            **{key: points[best][key] for key in ('thresholds', 'miou', 'mean_macs', 'onboard_miou',
                                                  'forwarded_share')},
            'promise': stated['promise'], 'broken': float(shares[best]),
            'without_expert': {
                **{key: own[key] for key in ('miou', 'mean_macs', 'onboard_miou', 'forwarded_share')},
                'broken': float(own_broken.sum() / max(own_settled.sum(), 1))}}
    return found


def expert_criterion(bundle: Bundle, criterion: str, observed: Observations, before: Observations,
                     strength: np.ndarray, images: np.ndarray) -> dict:
    """What bundle.json says of a criterion for an expert; its thresholds are those for strength 0.

    strength: float (n,), of each row. images: as of `expert_points`.
    """
    rule, onboard = CRITERIA[criterion], sum(exit_.onboard for exit_ in bundle.judged_exits)
    scores, sign = observed.scores[criterion].copy(), 1 if rule.direction == 'below' else -1
    added = per_strength(scores[:, onboard - 1], strength)
    scores[:, :onboard] += sign * added * strength[:, None]    # the same as stricter thresholds; the server has none
    observed = replace(observed, scores={criterion: scores})
    able = np.array([bundle.refines(observed.expert, each) for each in strength])

    def point(level):
        forwarded = (exits_taken(rule, scores, level) >= onboard) & able
        return {'thresholds': list(map(float, level)), **cascade(bundle, observed, criterion, level),
                'forwarded_share': float(forwarded.mean())}
    points = [point(level) for level in threshold_levels(rule, scores, onboard)]
    return {'direction': rule.direction, 'thresholds': rule.thresholds, 'per_strength': added, 'curve': curve(points),
            'operating_points': expert_points(bundle, criterion, points, observed, before, images)}


def choose_restoration(bundle: Bundle, family: str, samples: Sequence, threads: int,
                       report: Callable[[int, int], None]) -> None:
    """Store what is done to an expert's images: what gives the best onboard exits on distorted (image, labels).

    A backbone that has learned nothing of noise sees more where some of it is taken away, and one that has learned
    nothing of blur where that is, if there is a detector that measures it. By the mean mIoU of the onboard exits.
    """
    expert, classes, total = bundle.document['experts'][family], len(bundle.classes), len(copies(len(samples), family))
    able = [AS_IT_IS, SMOOTHED]
    if family == 'blur' and bundle.detector is not None and Detector(bundle).measures_blur:
        able.append(DEBLURRED)
    tried = []
    for number, restoration in enumerate(able):
        expert.update(restoration)
        engine, matrices = Engine(bundle, threads=threads, part='onboard'), 0
        for done, (image, labels) in enumerate(distorted(samples, family), start=1):
            matrices = matrices + np.array([confusion(labels, output.mask(*labels.shape[::-1]), classes)
                                            for output in engine.segment(image, 'never', expert=family).outputs])
            report(number * total + done, len(able) * total)
        tried.append(float(np.mean([mean_iou(matrix) for matrix in matrices])))
    expert.update(able[int(np.argmax(tried))])
    expert['restorations_tried'] = [{**each, 'miou': miou} for each, miou in zip(able, tried)]


def calibrate_experts(bundle: Bundle, samples: list, threads: int = 2,
                      report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Measure all experts of a calibrated bundle on distorted copies of (image, labels); nothing is written yet.

    The criteria's models (`gain`, limits of classes) are those of the bundle: they speak of calibrated probabilities,
    and each expert has temperatures of its own. Thresholds and curves of the criteria that stop whole frames are
    measured; for those that stop pixels one by one the bundle's stand.
    """
    from ee_seg_ros.search.temperature import calibrate_temperatures, labelled_pixels
    for family in bundle.experts:
        expert, images = bundle.document['experts'][family], np.array([row[0] for row in copies(len(samples), family)])
        expert.pop('forwarding', None)    # all frames run through all exits here
        total = len(images)
        choose_restoration(bundle, family, samples, threads, report)
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
        strength = strengths(bundle, samples, family)
        expert['forwarding'] = choose_forwarding(bundle, observed, strength)
        observed = as_run(bundle, observed, strength)
        expert['criteria'] = {
            criterion: expert_criterion(bundle, criterion, observed, before, strength, images)
            for criterion in bundle.document['criteria'] if criterion in observed.scores}
