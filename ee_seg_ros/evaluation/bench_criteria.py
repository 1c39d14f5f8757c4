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
"""`ee_seg bench criteria`: the exit criteria of a bundle against each other, at equal mIoU.

Every criterion is swept along the curve that the bundle stores for it, so its thresholds come from other images than
those measured here. All exits run once on each image; where a criterion ends at each setting, and what that gives and
costs, follows from what they gave (`evaluate.Observations`). Milliseconds are those of `timing`: what a criterion
itself takes to look is part of them.
"""
from collections.abc import Callable, Iterator

import numpy as np

from ee_seg_ros.data.datasets import samples_of
from ee_seg_ros.evaluation import bench_pixels
from ee_seg_ros.evaluation.evaluate import Observations, check_classes, exit_costs, exits_taken, observe
from ee_seg_ros.evaluation.machine import machine
from ee_seg_ros.evaluation.savings import (
    LOSSES_PP,
    REFERENCE,
    RESAMPLES,
    Outcome,
    Sweep,
    claims_of,
    intervals,
    resamples,
    saving,
    sweep,
)
from ee_seg_ros.evaluation.timing import (
    ROUNDS,
    TIMED_IMAGES,
    judging_times,
    median_times,
    opencv_threads,
    stopping_at,
    ways,
)
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine


def criteria_of(bundle: Bundle) -> list:
    """Names of a bundle's criteria that have a stored curve. Raises BundleError without any."""
    names = [name for name, entry in bundle.document['criteria'].items() if entry['curve']]
    if not names:
        raise BundleError(f'bundle {bundle.name} stores no curve of any criterion, along which to compare them: give '
                          'one that `ee_seg export --split ... --root ...` has calibrated')
    return names


def outcomes_of(bundle: Bundle, observed: Observations, times: dict, criterion: str) -> Iterator[Outcome]:
    """Outcomes of a criterion: no frame settles, then the points of its stored curve in order.

    times: (criterion, exit index) -> ms.
    """
    rule, judged, images = CRITERIA[criterion], len(bundle.judged_exits), np.arange(len(observed.matrices))
    macs = observed.macs_of(bundle, criterion)
    ms = np.array([times.get((criterion, index), np.nan) for index in range(judged + 1)])
    fitted = bundle.document.get('calibration', {})
    never = {'miou': fitted.get('full_miou'), 'mean_macs': fitted.get('full_macs')}
    for place, point in enumerate([never, *bundle.document['criteria'][criterion]['curve']]):
        thresholds = list(point['thresholds']) if place else None
        taken = exits_taken(rule, observed.scores[criterion], thresholds or stopping_at(rule, judged, judged))
        shares = np.bincount(taken, minlength=judged + 1) / len(taken)
        setting = {'name': f'{criterion} curve {place - 1}' if place else f'{criterion}, no frame settles',
                   'criterion': criterion, 'thresholds': thresholds,
                   'exit_shares': [round(float(share), 4) for share in shares],
                   'fit_miou': point.get('miou'), 'fit_macs': point.get('mean_macs')}
        yield Outcome(setting, observed.matrices_of(criterion, taken),
                      {'macs': macs[images, taken], 'ms': ms[taken]})


def fitted_sweep(bundle: Bundle, criterion: str) -> Sweep | None:
    """A criterion on the images that its thresholds were chosen on, cross-validated (`calibration.cross_validated`).

    The first setting runs the final output on every frame. Returns a `Sweep` of R = 1, no resamples, whose only cost is
    macs; None where a bundle stores no such figures.
    """
    stored = bundle.document['criteria'][criterion].get('cross_validated')
    if stored is None:
        return None
    points = [{'miou': stored['full_miou'], 'mean_macs': stored['full_macs']}, *stored['points']]
    mious, macs = (np.array([[point[key] for point in points]], np.float64) for key in ('miou', 'mean_macs'))
    return Sweep(tuple(points), mious, {'macs': macs})


def savings_of(bundle: Bundle, sweeps: dict) -> dict:
    """The section `savings`: criterion -> {macs, ms, fit: {macs}}, each a `savings.saving` against the reference.

    sweeps: criterion -> `Sweep`. fit: the same from the images that the thresholds were chosen on; absent where the
    bundle stores no figures of them.
    """
    reference = sweeps.get(REFERENCE)
    if reference is None:
        return {}
    fit_reference, found = fitted_sweep(bundle, REFERENCE), {}
    for name, swept in sweeps.items():
        if name == REFERENCE:
            continue
        found[name] = {cost: saving(swept, reference, cost) for cost in ('macs', 'ms')}
        fit = fitted_sweep(bundle, name)
        if fit is not None and fit_reference is not None:
            found[name]['fit'] = {'macs': saving(fit, fit_reference, 'macs')}
    return found


def rows_of(swept: Sweep) -> list:
    """One row per setting of a criterion: what identifies it, its figures, and the intervals of its mIoU."""
    return [{**setting, 'miou': float(swept.mious[0, index]), 'miou_intervals': intervals(swept.mious[:, index]),
             'mean_macs': float(swept.costs['macs'][0, index]), 'latency_ms': float(swept.costs['ms'][0, index])}
            for index, setting in enumerate(swept.settings)]


def measure(name_or_path: str, dataset: str, root: str | None, split: str, limit: int = 0, threads: int = 2,
            report: Callable[[int, int], None] = lambda done, total: None) -> dict:
    """Run the bench; returns `criteria.json`: machine, rows, savings, claims and their intervals, and the set-up.

    limit: use so many images of the split (0: all). report: called with (steps done, steps in all). `fitted_on`: the
    images that the curves are from. Intervals say what other images of this kind might have given; the times of the
    ways through the network are taken as they were measured. Raises ValueError (BundleError among them) or
    FileNotFoundError for wrong input.
    """
    engine = Engine(Bundle.load(name_or_path), threads=threads)
    bundle = engine.bundle
    names = criteria_of(bundle)
    check_classes(bundle, dataset, root, split)
    total, samples = samples_of(dataset, root, split, limit)
    timed = [image for image, _ in samples_of(dataset, root, split, min(total, TIMED_IMAGES))[1]]
    done, steps = 0, total * (1 + ('pixels' in bundle.document)) + ROUNDS * len(timed)

    def step(*_):
        nonlocal done
        done += 1
        report(done, steps)
    with opencv_threads(threads):
        observed = observe(engine, samples, step)
        jobs = {way: job for way, job in ways(engine, observed).items() if way[0] in names}
        times = median_times(jobs, timed, ROUNDS, step)
        judging = judging_times(bundle, timed, names, threads, 1)
        weights, pixels = resamples(total), None
        if 'pixels' in bundle.document:
            pixels = bench_pixels.measure(engine, samples_of(dataset, root, split, limit)[1], timed, weights, threads,
                                          ROUNDS, step)
    sweeps = {name: sweep(outcomes_of(bundle, observed, times, name), weights) for name in names}
    savings, whole_macs = savings_of(bundle, sweeps), exit_costs(bundle)[-1]
    claims, around = claims_of(savings, whole_macs)
    if pixels is not None:
        claims, around = {**claims, **pixels.pop('claims')}, {**around, **pixels.pop('intervals')}
    return {'machine': machine(), 'rows': [row for swept in sweeps.values() for row in rows_of(swept)],
            'claims': claims, 'intervals': around, 'savings': savings, 'judging': judging, 'pixels': pixels,
            'bundle': {'name': bundle.name, 'fingerprint': bundle.fingerprint}, 'whole_macs': whole_macs,
            'exit_names': [exit_.name for exit_ in bundle.exits], 'losses_pp': list(LOSSES_PP),
            'resamples': RESAMPLES, 'fitted_on': bundle.document.get('calibration', {}).get('split'),
            'dataset': dataset, 'split': split, 'images': total, 'timed_images': len(timed), 'rounds': ROUNDS,
            'threads': threads}
