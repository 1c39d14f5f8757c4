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
"""`ee_seg bench exits`: an early-exit bundle against a single-exit network, all on this machine, in one process.

The time of every way through the network (a criterion and the exit at which it stops; an exit alone; the single-exit
network) is measured on a sample of images, all ways taking turns (`timing`); and a criterion's mean latency is the
mean, over all images, of the time of the way that each of them takes.
"""
from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np

from ee_seg_ros.data.datasets import samples_of
from ee_seg_ros.evaluation.evaluate import Observations, check_classes, exits_taken, observe, static_costs
from ee_seg_ros.evaluation.machine import machine
from ee_seg_ros.evaluation.metrics import mean_iou
from ee_seg_ros.evaluation.pair import run_pair
from ee_seg_ros.evaluation.savings import intervals, resampled_mious, resamples
from ee_seg_ros.evaluation.timing import ROUNDS, TIMED_IMAGES, median_times, opencv_threads, size_of, ways
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine

COLUMNS = ('name', 'miou', 'mean_gmac', 'latency_ms', 'exit_shares')
OTHERS = ('single', 'single_fine', 'smaller')    # kinds of rows that are not of the early-exit bundle
FINE_GAIN = 0.01    # mIoU by which a finer single-exit network must be better to be the one to compare with
EQUAL_MIOU, OVER_FINAL, EQUAL_COST = 'speedup_at_equal_miou', 'speedup_over_own_final', 'miou_gain_pp_at_equal_cost'


def static_row(kind: str, name: str, bundle: Bundle, observed: Observations, index: int, latency_ms: float) -> dict:
    """The row of one exit run alone. kind: one of `OTHERS`, `static`, or `final` for our own final output.

    fit_miou, fit_gmac: as of `policy_row`; None where the bundle stores no figures of its exits.
    """
    gmac = static_costs(bundle)[index] / 1e9
    fitted = {entry['name']: entry['miou'] for entry in bundle.document.get('calibration', {}).get('exits', [])}
    fit_miou = fitted.get(bundle.exits[index].name)
    return {'name': name, 'kind': kind, 'criterion': None, 'thresholds': None,
            'miou': mean_iou(observed.matrices[:, index].sum(0)), 'mean_gmac': gmac, 'latency_ms': latency_ms,
            'exit_shares': None, 'fit_miou': fit_miou, 'fit_gmac': None if fit_miou is None else gmac}


def policy_row(kind: str, name: str, bundle: Bundle, observed: Observations, times: dict, criterion: str,
               point: dict) -> dict:
    """The row of a criterion with the thresholds of a stored point (of its curve, or an operating point).

    times: (criterion, exit index) -> ms. exit_shares: one per exit of the bundle, on both sides of a split.
    fit_miou, fit_gmac: the figures stored with the point, from the images on which the thresholds were chosen.
    """
    taken = exits_taken(CRITERIA[criterion], observed.scores[criterion], point['thresholds'])
    shares = np.bincount(taken, minlength=len(bundle.exits)) / len(taken)
    return {'name': name, 'kind': kind, 'criterion': criterion, 'thresholds': list(point['thresholds']),
            'miou': mean_iou(observed.matrices_of(criterion, taken).sum(0)),
            'mean_gmac': float(observed.macs_of(bundle, criterion)[np.arange(len(taken)), taken].mean() / 1e9),
            'latency_ms': float(np.mean([times[criterion, index] for index in taken])),
            'exit_shares': [round(float(share), 4) for share in shares],
            'fit_miou': point.get('miou'), 'fit_gmac': point['mean_macs'] / 1e9 if 'mean_macs' in point else None}


def rows_of(bundle: Bundle, observed: Observations, times: dict) -> list:
    """The rows of an early-exit bundle: its final output alone, every exit alone, operating points, curves."""
    last = len(bundle.exits) - 1
    rows = [static_row('final', 'final output alone', bundle, observed, last, times[None, last])]
    rows += [static_row('static', f'{exit_.name} alone', bundle, observed, index, times[None, index])
             for index, exit_ in enumerate(bundle.judged_exits)]
    for kind in ('operating_point', 'curve'):
        for criterion, entry in bundle.document['criteria'].items():
            points = entry['operating_points'] if kind == 'operating_point' else dict(enumerate(entry['curve']))
            rows += [policy_row(kind, f'{criterion} {"" if kind == "operating_point" else "curve "}{label}', bundle,
                                observed, times, criterion, point) for label, point in points.items()]
    return rows


def reference_of(rows: list) -> dict:
    """The row of the single-exit network to compare with: the finer one only if it is more than `FINE_GAIN` better."""
    of = {row['kind']: row for row in rows}
    single, fine = of['single'], of.get('single_fine')
    return fine if fine is not None and fine['miou'] > single['miou'] + FINE_GAIN else single


def claims_of(rows: list) -> tuple:
    """(claims, {claim: name of the row behind it}) of all rows, those of the other networks included.

    A claim for which no row qualifies is absent. The single-exit network is that of `reference_of`.
    """
    of = {row['kind']: row for row in rows}
    ours = [row for row in rows if row['kind'] not in OTHERS]
    single, final, smaller = reference_of(rows), of['final'], of.get('smaller')
    claims, behind = {'single_exit_miou': single['miou']}, {}

    def speedup(claim, other):
        able = [row for row in ours if row is not other and row['miou'] >= other['miou']]
        if able:
            row = min(able, key=lambda row: row['latency_ms'])
            claims[claim], behind[claim] = other['latency_ms'] / row['latency_ms'], row['name']
            return row
        return None
    best = speedup(EQUAL_MIOU, single)
    if best is not None:
        claims['early_exit_miou'] = best['miou']
    speedup(OVER_FINAL, final)
    able = [row for row in ours if row['latency_ms'] <= smaller['latency_ms']] if smaller else []
    if able:
        row = max(able, key=lambda row: row['miou'])
        claims[EQUAL_COST], behind[EQUAL_COST] = 100 * (row['miou'] - smaller['miou']), row['name']
    return claims, behind


def chosen_by_fit(rows: list, bundle: Bundle, single: Bundle) -> dict:
    """Claims as they come out for the row that one would have chosen without having seen the images measured here.

    The claims take the best row on these images, which flatters. This takes the cheapest row (in MACs) whose stored
    mIoU is not below that of the network it is compared with, both from the images that thresholds were chosen on;
    {claim: {row, speedup, miou_change_pp}}. Absent where the bundles store no such figures, or of other images.
    single: the bundle of `reference_of`.
    """
    fitted = bundle.document.get('calibration', {})
    others = {OVER_FINAL: (next(row for row in rows if row['kind'] == 'final'), fitted.get('full_miou'))}
    theirs = single.document.get('calibration', {})
    if fitted and all(theirs.get(key) == fitted[key] for key in ('dataset', 'split', 'images')):
        others[EQUAL_MIOU] = (reference_of(rows), theirs['full_miou'])
    found = {}
    for claim, (other, target) in others.items():
        able = [row for row in rows if target is not None and row['fit_miou'] is not None
                and row['fit_miou'] >= target and row['kind'] not in OTHERS and row is not other]
        if able:
            row = min(able, key=lambda row: row['fit_gmac'])
            found[claim] = {'row': row['name'], 'speedup': other['latency_ms'] / row['latency_ms'],
                            'miou_change_pp': 100 * (row['miou'] - other['miou'])}
    return found


def against_final(bundle: Bundle, observed: Observations) -> dict:
    """Each judged exit alone against the final output alone: name -> {miou_change_pp, intervals}.

    In percentage points of mIoU, with the intervals of a bootstrap over the images (`savings.intervals`): how far a
    difference between two outputs of one network may be by chance.
    """
    weights = resamples(len(observed.matrices))
    *mious, final = (100 * resampled_mious(observed.matrices[:, index], weights) for index in range(len(bundle.exits)))
    return {exit_.name: {'miou_change_pp': float(miou[0] - final[0]), 'intervals': intervals(miou - final)}
            for exit_, miou in zip(bundle.exits, mious)}


def end_to_end(engine: Engine, single: Engine, row: dict, samples: Sequence, rounds: int,
               report: Callable[[], None] = lambda: None) -> dict:
    """A row and the single-exit network really run on every image, in turn: mean milliseconds and their ratio.

    Of each image the median over the rounds counts; of images, their mean.
    """
    name = row['name'].removesuffix(' alone') if row['kind'] == 'static' else engine.bundle.exits[-1].name
    last = single.bundle.exits[-1].name

    def early(image):
        if row['criterion'] is None:
            return engine.run_exit(image, name).output.mask(*size_of(image))
        return run_pair(engine, image, row['criterion'], row['thresholds']).mask(*size_of(image))
    jobs = {'early': early, 'single': lambda image: single.run_exit(image, last).output.mask(*size_of(image))}
    times = []
    for image, _ in samples:
        times.append(median_times(jobs, [image], rounds))
        report()
    early_ms, single_ms = (mean(entry[key] for entry in times) for key in jobs)
    return {'row': row['name'], 'images': len(times), 'early_exit_ms': early_ms, 'single_exit_ms': single_ms,
            'speedup': single_ms / early_ms}


def _networks(names, threads):
    engines = {kind: Engine(Bundle.load(name), threads=threads) for kind, name in names.items() if name}
    ours = engines['early'].bundle
    for engine in engines.values():
        if [info.name for info in engine.bundle.classes] != [info.name for info in ours.classes]:
            raise BundleError(f'bundles {ours.name} and {engine.bundle.name} have different classes: their mIoU cannot '
                              'be compared')
    return engines


def measure(name_or_path: str, single: str, smaller: str | None, dataset: str, root: str | None, split: str,
            limit: int = 0, threads: int = 2, report: Callable[[int, int], None] = lambda done, total: None,
            single_fine: str | None = None) -> dict:
    """Run the bench; returns `exits.json`: machine, rows, claims, which rows the claims are of, and the set-up.

    name_or_path: the early-exit bundle. single: the single-exit bundle. smaller: one of less cost, or None. limit: use
    so many images of the split (0: all). report: called with (steps done, steps in all). single_fine: the single-exit
    network at a finer output stride, or None; see `reference_of`, whose row `reference` names. `control_ratio`: the
    single-exit network timed twice, one over the other: so far from 1 may any ratio of this run be by chance.
    Raises ValueError (BundleError among them) or FileNotFoundError for wrong input.
    """
    engines = _networks({'early': name_or_path, 'single': single, 'single_fine': single_fine, 'smaller': smaller},
                        threads)
    check_classes(engines['early'].bundle, dataset, root, split)
    total = samples_of(dataset, root, split, limit)[0]
    timed = [image for image, _ in samples_of(dataset, root, split, min(total, TIMED_IMAGES))[1]]
    done, steps = 0, total * (len(engines) + 1) + ROUNDS * len(timed)

    def step(*_):
        nonlocal done
        done += 1
        report(done, steps)
    with opencv_threads(threads):
        observed = {kind: observe(engine, samples_of(dataset, root, split, limit)[1], step)
                    for kind, engine in engines.items()}
        jobs = ways(engines['early'], observed['early'])
        others = [kind for kind in engines if kind != 'early']
        lasts = {kind: len(engines[kind].bundle.exits) - 1 for kind in others}
        for kind in others:
            jobs[kind] = ways(engines[kind], observed[kind])[None, lasts[kind]]
        jobs['control'] = jobs['single']
        times = median_times(jobs, timed, ROUNDS, step)
        rows = [static_row(kind, f'{engines[kind].bundle.name} ({kind})', engines[kind].bundle, observed[kind],
                           lasts[kind], times[kind]) for kind in others]
        rows += rows_of(engines['early'].bundle, observed['early'], times)
        claims, behind = claims_of(rows)
        reference = reference_of(rows)
        compared = engines[reference['kind']]
        found = {'machine': machine(), 'rows': rows, 'reference': reference['name'], 'claims': claims,
                 'rows_behind_claims': behind,
                 'against_final': against_final(engines['early'].bundle, observed['early']),
                 'chosen_by_fit': chosen_by_fit(rows, engines['early'].bundle, compared.bundle)}
        if EQUAL_MIOU in behind:
            winner = next(row for row in rows if row['name'] == behind[EQUAL_MIOU])
            found['end_to_end'] = end_to_end(engines['early'], compared, winner,
                                             samples_of(dataset, root, split, limit)[1], ROUNDS, step)
    report(steps, steps)
    return {**found, 'bundles': {kind: {'name': engine.bundle.name, 'fingerprint': engine.bundle.fingerprint}
                                 for kind, engine in engines.items()},
            'exit_names': [exit_.name for exit_ in engines['early'].bundle.exits], 'dataset': dataset, 'split': split,
            'images': total, 'timed_images': len(timed), 'rounds': ROUNDS, 'threads': threads,
            'control_ratio': times['single'] / times['control']}


def shown(found: dict) -> dict:
    """The part of `exits.json` for a table on the terminal: without the curves, and with the columns of `COLUMNS`."""
    rows = [{key: row[key] if row[key] is not None else '' for key in COLUMNS}
            for row in found['rows'] if row['kind'] != 'curve']
    return {**found, 'rows': rows}
