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
"""What all exits of a bundle, however many, gave on labelled images: kept once, so that any choice can be judged."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ee_seg_ros.evaluation.metrics import confusion, mean_iou
from ee_seg_ros.inference.criteria import CRITERIA
from ee_seg_ros.inference.engine import Engine
from ee_seg_ros.inference.features import pack
from ee_seg_ros.inference.pixels import OnboardMap

SINGLE = tuple(name for name, rule in CRITERIA.items() if rule.score and rule.first == 0 and not rule.needs)
PAIRED = tuple(name for name, rule in CRITERIA.items() if rule.score and rule.first == 1 and not rule.needs)
_OUTSIDE = 255    # of a class map: beyond the image's content


@dataclass(frozen=True)
class Candidates:
    """Observations of k exits (candidates) on n images, with which any cascade of them can be worked out.

    names (k,) in order of depth; places int (k,): exits behind the same unit share a number, which grows with depth;
    onboard bool (k,): before the split. matrices int64 (n, k, C, C + 1), see `metrics.confusion`. grids uint8
    (n, k, rows, columns): class maps of every 16th pixel, 255 outside the image. single: criterion -> (n, k) score
    of the criteria that look at one exit. payloads (n,): bytes of the features; 0 where there is no split.
    """

    names: np.ndarray
    places: np.ndarray
    onboard: np.ndarray
    matrices: np.ndarray
    grids: np.ndarray
    single: dict
    payloads: np.ndarray
    _pairs: dict = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def mious(self) -> np.ndarray:
        """float64 (k,): mIoU of each exit for all images, 0..1."""
        return np.array([mean_iou(matrix) for matrix in self.matrices.sum(0)])

    def score(self, criterion: str, earlier: int | None, current: int) -> np.ndarray:
        """float64 (n,): what a criterion says at exit `current` if `earlier` ran before it; NaN: nothing.

        earlier: None where no exit ran before.
        """
        if criterion in SINGLE:
            return self.single[criterion][:, current]
        if earlier is None:
            return np.full(len(self.matrices), np.nan)
        key = (criterion, earlier, current)
        if key not in self._pairs:
            compare = CRITERIA[criterion].score
            inside = self.grids[:, current] != _OUTSIDE
            self._pairs[key] = np.array([
                compare([SimpleNamespace(sampled_classes=before[known]), SimpleNamespace(sampled_classes=now[known])])
                for before, now, known in zip(self.grids[:, earlier], self.grids[:, current], inside)])
        return self._pairs[key]

    def subset(self, images: np.ndarray) -> 'Candidates':
        """The same exits on some of the images (indices)."""
        return Candidates(self.names, self.places, self.onboard, self.matrices[images], self.grids[images],
                          {name: scores[images] for name, scores in self.single.items()}, self.payloads[images],
                          {key: scores[images] for key, scores in self._pairs.items()})

    def save(self, path: str | Path) -> None:
        """Write everything to one .npz file."""
        arrays = {entry.name: getattr(self, entry.name) for entry in fields(self)
                  if entry.name not in ('single', '_pairs')}
        np.savez_compressed(path, **arrays, **{f'single.{name}': scores for name, scores in self.single.items()})

    @classmethod
    def load(cls, path: str | Path) -> 'Candidates':
        """Read what `save` wrote."""
        with np.load(path) as stored:
            arrays = dict(stored)
        single = {key.removeprefix('single.'): arrays.pop(key) for key in list(arrays) if key.startswith('single.')}
        return cls(**arrays, single=single)


def joined(first: np.ndarray, count: int, second: np.ndarray, axis: int = 0) -> np.ndarray:
    """The first `count` entries of one array along an axis, then those of another but its first."""
    return np.concatenate([np.take(first, range(count), axis), np.delete(second, 0, axis)], axis)


def join_candidates(first: Candidates, count: int, second: Candidates) -> Candidates:
    """The first `count` exits of `first`, then those of `second` but its first, with what `second` sends.

    Both on the same images: what is the same in two networks need not be observed twice.
    """
    return Candidates(
        joined(first.names, count, second.names),
        joined(first.places, count, first.places.max() + 1 + second.places),    # deeper than all before
        joined(first.onboard, count, second.onboard), joined(first.matrices, count, second.matrices, 1),
        joined(first.grids, count, second.grids, 1),
        {name: joined(scores, count, second.single[name], 1) for name, scores in first.single.items()}, second.payloads)


def run_all(engine: Engine, image: np.ndarray, expert: str = '') -> tuple:
    """(outputs of all exits in order, bytes of the features) of an image, uint8 (H, W, 3) RGB; engine with part 'all'.

    The bytes are those of the message that would be sent; 0 where the bundle has no split. expert: as of
    `Engine.segment`.
    """
    bundle = engine.bundle
    result = engine.segment(image, 'never', expert=expert)
    if bundle.split is None:
        return result.outputs, 0
    onboard = OnboardMap(engine.onboard_map(result).classes)    # all cells: what is settled is not known yet
    features, place = engine.encode(result), result.placement
    rest = engine.finish(features, place, onboard=onboard, expert=expert)
    payload = pack(bundle, features, place, (place.image_width, place.image_height), onboard)
    return result.outputs + rest.outputs, len(payload)


def observe_candidates(engine: Engine, samples: Iterable,
                       report: Callable[[int], None] = lambda done: None) -> Candidates:
    """Run every (image, labels) of `samples` through all exits of an engine (part 'all') once.

    Scores are the running engine's own, at the temperatures of its bundle. Raises ValueError if there is no image.
    """
    bundle, matrices, grids, payloads = engine.bundle, [], [], []
    single = {name: [] for name in SINGLE}
    for image, labels in samples:
        outputs, payload = run_all(engine, image)
        height, width = labels.shape
        matrices.append([confusion(labels, output.mask(width, height), len(bundle.classes)) for output in outputs])
        grids.append(np.stack([output.sampled_classes for output in outputs]))
        for name, rows in single.items():
            rows.append([CRITERIA[name].score([output]) for output in outputs])
        payloads.append(payload)
        report(len(matrices))
    if not matrices:
        raise ValueError('there are no images to search on: check the data set and its split')
    stages = list(bundle.stages)
    return Candidates(
        names=np.array([exit_.name for exit_ in bundle.exits]),
        places=np.array([stages.index(exit_.stage) for exit_ in bundle.exits]),
        onboard=np.array([exit_.onboard for exit_ in bundle.exits]), matrices=np.array(matrices), grids=_padded(grids),
        single={name: np.array(rows) for name, rows in single.items()}, payloads=np.array(payloads))


def _padded(grids):
    """Grids of images of different shapes in one array."""
    rows, columns = (max(grid.shape[axis] for grid in grids) for axis in (1, 2))
    stacked = np.full((len(grids), len(grids[0]), rows, columns), _OUTSIDE, np.uint8)
    for index, grid in enumerate(grids):
        stacked[index, :, :grid.shape[1], :grid.shape[2]] = grid
    return stacked
