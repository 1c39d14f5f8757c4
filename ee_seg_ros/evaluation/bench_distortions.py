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
"""`ee_seg bench distortions`: what distortions cost the masks that leave onboard, and what expert exits win back.

After the tables of Pacheco et al. (GLOBECOM 2021, arXiv 2108.09343), for segmentation. Every image is distorted in
every way and at every level, with a seed of its own, and runs through both sides as the two nodes run it over an ideal
link: with the exits' own heads (`pristine`), with the expert of the family that it truly has (`oracle`), and with the
one that the detector calls for from this image alone (`detector`).
"""
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ee_seg_ros.data.datasets import samples_of
from ee_seg_ros.data.distortions import DISTORTIONS, distort
from ee_seg_ros.data.sources import open_source
from ee_seg_ros.evaluation.evaluate import check_classes
from ee_seg_ros.evaluation.machine import machine
from ee_seg_ros.evaluation.metrics import confusion, mean_iou
from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.evaluation.timing import opencv_threads, size_of
from ee_seg_ros.inference.bundle import Bundle
from ee_seg_ros.inference.detector import Detector
from ee_seg_ros.inference.engine import Engine

CLEAN = ('clean', 0)
PRISTINE, ORACLE, DETECTOR = 'pristine', 'oracle', 'detector'
TELLING_LOSS = 0.05    # mIoU that the own heads must lose before one speaks of winning it back
BATCH = 10             # images, of an edge outage
DEADLINE_MS, LINK_MS, LINK_BITS = 100.0, 20.0, 1e6    # a frame at 10 Hz; round trip, bits per second of a thin link
TIMED, ROUNDS = 50, 5  # images to time the detector on, and how often


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    settled: onboard. forwarded: its features were sent. at_once, final: confusion matrices of the mask that leaves
    onboard and of the final mask. way: (expert, exit at which it ended). ms: both sides' computing, image to final
    mask. size: bytes sent.
    """

    settled: bool
    forwarded: bool
    at_once: np.ndarray
    final: np.ndarray
    way: tuple
    ms: float
    size: int


def settings(names: Sequence[str] = tuple(DISTORTIONS)) -> list:
    """[(distortion, level)]: clean, then every listed level of these distortions."""
    return [CLEAN, *((name, level) for name in names for level in DISTORTIONS[name].levels)]


def family_of(name: str) -> str:
    """The family of a distortion; 'clean' of clean images."""
    return DISTORTIONS[name].family if name in DISTORTIONS else name


class Runner:
    """Runs images through both sides at one operating point, with any expert."""

    def __init__(self, engine: Engine, criterion: str, operating_point: str):
        self._engine, self._criterion, self._point = engine, criterion, operating_point
        for expert in ('', *engine.bundle.experts):
            engine.bundle.thresholds(criterion, operating_point, expert)    # a wrong name is told before all else

    def run(self, image: np.ndarray, labels: np.ndarray, expert: str, strength: float | None = None) -> Outcome:
        """One image with an expert's heads ('' for the exits' own); the detector's time is not in it.

        strength: of the distortion as it was detected, see `Engine.segment`.
        """
        engine, classes = self._engine, len(self._engine.bundle.classes)
        thresholds = engine.bundle.thresholds(self._criterion, self._point, expert)
        began = time.perf_counter()
        frame = run_pair(engine, image, self._criterion, thresholds, expert=expert, strength=strength)
        final, robot = frame.mask(*size_of(image)), frame.sides[0]
        ms, size = (time.perf_counter() - began) * 1e3, len(frame.payload(engine))
        forwarded = frame.onboard is not None
        at_once = robot.output.mask(*size_of(image)) if forwarded else final
        return Outcome(robot.settled, forwarded, confusion(labels, at_once, classes), confusion(labels, final, classes),
                       (expert, frame.outputs[-1].exit.name), ms, size)


def look(runner: Runner, detector: Detector | None, experts: Sequence[str], samples: Sequence, setting: tuple,
         step: Callable[[], None]) -> tuple:
    """({heads: [Outcome, one per image]}, [Detection]) of all images with one distortion.

    Each expert runs once on an image, however many ways lead to it.
    """
    outcomes, detections, right, strength = {}, [], family_of(setting[0]), None
    for seed, (image, labels) in enumerate(samples):
        image = distort(image, setting[0], setting[1], seed)
        chosen = {PRISTINE: '', ORACLE: right if right in experts else ''}
        if detector is not None:
            detections.append(detector.detect(image))
            chosen[DETECTOR] = detections[-1].family if detections[-1].family in experts else ''
            strength = detections[-1].level
        found = {expert: runner.run(image, labels, expert, strength) for expert in dict.fromkeys(chosen.values())}
        for heads, expert in chosen.items():
            outcomes.setdefault(heads, []).append(found[expert])
        step()
    return outcomes, detections


def broken(outcomes: Sequence[Outcome], promise: float | None) -> Iterator[bool]:
    """Of each settled frame: whether its mIoU is below the operating point's promise; nothing without a promise."""
    return (mean_iou(each.at_once) < promise for each in outcomes if each.settled and promise is not None)


def outage(outcomes: Sequence[Outcome], promise: float | None) -> float | None:
    """Share of the batches of `BATCH` images in a row whose settled frames have a mean mIoU below the promise.

    Batches without a settled frame do not count. None where that is all, or nothing is promised.
    """
    batches = [outcomes[start:start + BATCH] for start in range(0, len(outcomes), BATCH)]
    means = [np.nanmean([mean_iou(each.at_once) for each in batch if each.settled]) for batch in batches
             if any(each.settled for each in batch)]
    return None if promise is None or not means else float(np.mean([mean < promise for mean in means]))


def fastest(outcomes: Iterable[Outcome]) -> dict:
    """Way -> milliseconds of its fastest run: what it takes where nothing else runs on the machine."""
    found = {}
    for each in outcomes:
        found[each.way] = min(each.ms, found.get(each.way, each.ms))
    return found


def missed(outcomes: Sequence[Outcome], times: dict, detector_ms: float) -> float:
    """Share of frames whose final mask would come later than `DEADLINE_MS`: an estimate.

    Computing one after the other, as fast as it was seen (`fastest`), the detector's time, and for forwarded frames the
    round trip of an assumed link and what their bytes take on it.
    """
    return float(np.mean([times[each.way] + detector_ms + each.forwarded * (LINK_MS + 8e3 * each.size / LINK_BITS)
                          > DEADLINE_MS for each in outcomes]))


def row_of(setting: tuple, heads: str, outcomes: Sequence[Outcome], promise: float | None, times: dict,
           detector_ms: float) -> dict:
    """A row of the table: one distortion and level, one choice of heads. Shares are 0..1; None: nothing to measure."""
    failed = list(broken(outcomes, promise))
    sent = [each.size for each in outcomes if each.forwarded]
    return {'distortion': setting[0], 'level': setting[1], 'heads': heads,
            'onboard_miou': mean_iou(np.sum([each.at_once for each in outcomes], 0)),
            'onboard_share': float(np.mean([each.settled for each in outcomes])),
            'forwarded_share': float(np.mean([each.forwarded for each in outcomes])),
            'final_miou': mean_iou(np.sum([each.final for each in outcomes], 0)),
            'broken_promises': float(np.mean(failed)) if failed else None,
            'edge_outage': outage(outcomes, promise),
            'missed_deadlines': missed(outcomes, times, detector_ms if heads == DETECTOR else 0.0),
            'bytes': float(np.mean(sent)) if sent else None}


def recovered(rows: Sequence[dict], names: Sequence[str]) -> dict:
    """What experts win back of the onboard mIoU that distortions take from the exits' own heads.

    Over the levels of distortions `names` at which these lose `TELLING_LOSS` or more against clean images: `levels`
    (how many these are), `lost_pp`, and per choice of heads its share of that; {} where there is no such level.
    """
    table = {(row['distortion'], row['level'], row['heads']): row['onboard_miou'] for row in rows}
    clean = table[CLEAN + (PRISTINE,)]
    telling = [key[:2] for key, miou in table.items()
               if key[0] in names and key[2] == PRISTINE and clean - miou >= TELLING_LOSS]
    if not telling:
        return {}
    means = {heads: np.mean([table[setting + (heads,)] for setting in telling])
             for heads in (PRISTINE, ORACLE, DETECTOR) if CLEAN + (heads,) in table}
    lost = clean - means[PRISTINE]
    return {'levels': len(telling), 'lost_pp': float(100 * lost),
            **{heads: float((mean - means[PRISTINE]) / lost) for heads, mean in means.items() if heads != PRISTINE}}


def recalls(detected: dict) -> list:
    """[{distortion, level, family, recall, level_found, and the share of images of each detected family}].

    detected: (distortion, level) -> [Detection].
    """
    rows = []
    for (name, level), found in detected.items():
        families = [each.family for each in found]
        rows.append({'distortion': name, 'level': level, 'family': family_of(name),
                     'recall': families.count(family_of(name)) / len(found),
                     'level_found': float(np.mean([each.level for each in found])),
                     **{family: families.count(family) / len(found) for family in found[0].probabilities}})
    return rows


def claims_of(rows: Sequence[dict], seen: Sequence[dict], pooled: dict, promise: float | None,
              ms: float | None) -> dict:
    """The claims; what was not measured is absent. pooled: heads -> all `Outcome`s of distorted images."""
    of = {name: recovered(rows, [name]) for name in ('blur', 'noise')}
    claims = {f'{name}_recovered_share': found.get(DETECTOR) for name, found in of.items()}
    clean = {row['heads']: row['onboard_miou'] for row in rows if row['distortion'] == 'clean'}
    if DETECTOR in clean:
        claims['clean_loss_pp'] = 100 * (clean[PRISTINE] - clean[DETECTOR])
        every = recovered(rows, tuple(DISTORTIONS))
        if every.get(ORACLE, 0) > 0:
            claims['oracle_gain_kept_share'] = every[DETECTOR] / every[ORACLE]
    for name in ('clean', 'blur', 'noise'):
        of_name = [row['recall'] for row in seen if row['distortion'] == name]
        claims[f'{name}_recall'] = float(np.mean(of_name[len(of_name) > 1:])) if of_name else None    # not the mildest
    claims['detector_ms'] = ms
    for when, heads in (('before', PRISTINE), ('after', DETECTOR)):
        failed = list(broken(pooled.get(heads, ()), promise))
        claims[f'broken_promises_{when}'] = float(np.mean(failed)) if failed else None
        claims[f'onboard_share_{when}'] = float(np.mean([each.settled for each in pooled[heads]])) if pooled.get(
            heads) else None
    return {name: value for name, value in claims.items() if value is not None}


def video_recalls(detector: Detector, videos: Sequence[str]) -> dict:
    """Video -> share of its frames that the detector takes for clean."""
    found = {}
    for video in videos:
        source = open_source(video)
        families = [detector.detect(source.frame(index).image).family for index in range(source.count)]
        found[source.name] = families.count('clean') / len(families)
    return found


def measure(name_or_path: str, dataset: str, root: str | None, split: str, criterion: str, operating_point: str,
            limit: int = 0, threads: int = 2, videos: Sequence[str] = (),
            report: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Run the bench; returns `distortions.json`: machine, rows, claims, what the detector saw, and the set-up.

    limit: use so many images of the split (0: all). videos: on whose frames, all of them clean, the detector is to call
    nothing distorted. report: called with (steps done, steps in all). Raises ValueError (BundleError among them) or
    FileNotFoundError for wrong input.
    """
    engine = Engine(Bundle.load(name_or_path), threads=threads)
    bundle = engine.bundle
    detector = Detector(bundle) if bundle.detector is not None else None
    runner = Runner(engine, criterion, operating_point)
    check_classes(bundle, dataset, root, split)
    total, found = samples_of(dataset, root, split, limit)
    samples, done = list(found), 0
    points = bundle.document['criteria'].get(criterion, {'operating_points': {}})['operating_points']
    promise = points.get(operating_point, {}).get('promise')

    def step():
        nonlocal done
        done += 1
        report(done, total * len(settings()))
    ms = None
    with opencv_threads(1):
        if detector is not None:
            ms = float(np.median([min(detector.detect(image).ms for _ in range(ROUNDS))    # undisturbed
                                  for image, _ in samples[:TIMED]]))
            filmed = video_recalls(detector, videos)
    outcomes, detected, pooled = {}, {}, {}
    with opencv_threads(threads):
        for setting in settings():
            found, detections = look(runner, detector, bundle.experts, samples, setting, step)
            outcomes.update({(setting, heads): each for heads, each in found.items()})
            if detections:
                detected[setting] = detections
            for heads, each in found.items() if setting != CLEAN else ():
                pooled.setdefault(heads, []).extend(each)
    times = fastest(each for several in outcomes.values() for each in several)
    rows = [row_of(*key, each, promise, times, ms or 0.0) for key, each in outcomes.items()]
    seen = recalls(detected)
    return {'machine': machine(), 'rows': rows, 'claims': claims_of(rows, seen, pooled, promise, ms),
            'recovered': {name: recovered(rows, [name]) for name in DISTORTIONS}, 'detector': seen,
            'mildest_recall': {name: next(row['recall'] for row in seen if row['distortion'] == name)
                               for name in ('blur', 'noise') if seen},
            'video_clean_recall': filmed if detector is not None else {},
            'bundle': {'name': bundle.name, 'fingerprint': bundle.fingerprint, 'experts': list(bundle.experts)},
            'criterion': criterion, 'operating_point': operating_point, 'promise': promise, 'dataset': dataset,
            'split': split, 'images': total, 'batch': BATCH, 'deadline_ms': DEADLINE_MS,
            'link': {'round_trip_ms': LINK_MS, 'bits_per_second': LINK_BITS}, 'threads': threads}
