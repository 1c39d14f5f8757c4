# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Curves and operating points of a bundle's criteria, measured on images that the bundle was not trained on."""
import json
from collections.abc import Callable

import numpy as np

from ee_seg_ros.evaluation.evaluate import Observations, cascade, exit_costs, observe, samples_of
from ee_seg_ros.evaluation.metrics import mean_iou
from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine

CURVE_POINTS = 33
# Most mIoU that an operating point may lose against running the whole network on every frame.
ALLOWED_LOSS = {'fast': 0.02, 'balanced': 0.01, 'accurate': 0.005}


def curve(bundle: Bundle, observed: Observations, criterion: str) -> list:
    """Sweep one threshold, the same at every exit, over the quantiles of the scores that were seen.

    Returns a list of dicts {thresholds, miou, mean_macs, onboard_miou, onboard_macs, exit_shares, forwarded_share},
    from the threshold that settles least to the one that settles most.
    """
    rule, scores = CRITERIA[criterion], observed.scores[criterion]
    known = scores[np.isfinite(scores)]
    thresholds = np.unique(np.quantile(known, np.linspace(0, 1, CURVE_POINTS)))
    if rule.direction == 'above':
        thresholds = thresholds[::-1]
    points = []
    for threshold in thresholds:
        per_exit = [round(float(threshold), 6)] * len(bundle.onboard_exits)
        points.append({'thresholds': per_exit, **cascade(bundle, observed, criterion, per_exit)})
    return points


def operating_points(points: list, full_miou: float) -> dict:
    """For each operating point the cheapest point of a curve up to which no point loses more than its allowance.

    full_miou: mIoU of the whole network on the same images, 0..1. The curve is walked from its dearest point on, and
    left at the first that loses too much: a cheaper one that seems good again is so by chance, for rare classes make
    the mIoU of a few dozen images jump. Where the dearest point loses too much already, the best one is taken.
    """
    chosen = {}
    for name, loss in ALLOWED_LOSS.items():
        best = None
        for point in sorted(points, key=lambda point: -point['mean_macs']):
            if point['miou'] < full_miou - loss:
                break
            best = point
        best = best or max(points, key=lambda point: point['miou'])
        kept = ('thresholds', 'miou', 'mean_macs', 'onboard_miou', 'forwarded_share')
        chosen[name] = {key: best[key] for key in kept}
    return chosen


def _write(bundle, document):
    (bundle.path / 'bundle.json').write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')


def calibrate(name_or_path: str, dataset: str, root: str | None, split: str, limit: int = 0,
              threads: int = 2, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Measure a bundle on a split and store each criterion's curve and operating points in its bundle.json.

    The split must not have been trained on, and figures must not be reported on it afterwards.
    Raises ValueError or FileNotFoundError.
    """
    bundle = Bundle.load(name_or_path)
    total, samples = samples_of(dataset, root, split, limit)
    observed = observe(Engine(bundle, threads=threads), samples, lambda done: report(done, total))
    full = mean_iou(observed.matrices[:, -1].sum(0))
    for criterion, entry in bundle.document['criteria'].items():
        entry['curve'] = curve(bundle, observed, criterion)
        entry['operating_points'] = operating_points(entry['curve'], full)
    bundle.document['calibration'] = {
        'bundle_fingerprint': bundle.fingerprint, 'dataset': dataset, 'split': split, 'images': total,
        'full_miou': full, 'full_macs': exit_costs(bundle)[-1]}
    _write(bundle, bundle.document)


def copy_calibration(source: str, target: str) -> None:
    """Store the curves and operating points of one bundle in another with the same exits (a twin's in the shipped one).

    Raises BundleError if the exits of the two differ.
    """
    twin, bundle = Bundle.load(source), Bundle.load(target)
    if [exit_.name for exit_ in twin.exits] != [exit_.name for exit_ in bundle.exits]:
        raise BundleError(f'{source} and {target} have different exits: thresholds of one mean nothing to the other')
    for key in ('criteria', 'calibration'):
        if key in twin.document:
            bundle.document[key] = twin.document[key]
    _write(bundle, bundle.document)
