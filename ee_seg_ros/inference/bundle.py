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
"""A bundle: a multi-exit model on disk, as a folder with `bundle.json` and ONNX files."""
import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Optional

import numpy as np

from ee_seg_ros.inference.bundle_document import BundleError, is_offboard, path_to, read_document

OPERATING_POINTS = ('fast', 'balanced', 'accurate')
SEARCHED = 'searched'    # one more, of the criterion that a search chose: the thresholds that it found


@dataclass(frozen=True)
class ClassInfo:
    """A class: its name and its RGB colour (0..255). Its id is its place in `Bundle.classes`."""

    name: str
    color: tuple


@dataclass(frozen=True)
class Exit:
    """A head behind a stage. macs: the head's own multiply-accumulates. onboard: whether it lies before the split.

    averaged: its output is the mean over the heads that ran on its side of the split so far, and its own. expert: the
    family of distortions that the head was trained on, all of whose outputs are averaged; '' for the exit's own head.
    """

    name: str
    stage: str
    graph: str
    logits: str
    temperature: float
    macs: float
    onboard: bool
    averaged: bool = False
    expert: str = ''


def shipped_folders() -> list:
    """Folders in which shipped bundles may lie: the source tree, ament prefixes, the Python prefix; existing ones."""
    candidates = [Path(__file__).resolve().parents[2] / 'bundles']
    prefixes = [prefix for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if prefix]
    candidates += [Path(prefix) / 'share' / 'ee_seg_ros' / 'bundles' for prefix in prefixes + [sys.prefix]]
    return [folder for folder in candidates if folder.is_dir()]


def find_bundle(name_or_path: str) -> Path:
    """The folder of a bundle, given the name of a shipped one (`street`) or a path. Raises BundleError."""
    path = Path(name_or_path).expanduser()
    if not str(name_or_path):
        raise BundleError('no bundle given: expected the name of a shipped bundle or the path of a bundle folder')
    for folder in [path] + [shipped / name_or_path for shipped in shipped_folders()]:
        if (folder / 'bundle.json').is_file():
            return folder
    if path.is_dir():
        raise BundleError(f'{path} is a folder without bundle.json: expected a bundle as `ee_seg export` writes it')
    known = sorted({found.parent.name for shipped in shipped_folders() for found in shipped.glob('*/bundle.json')})
    raise BundleError(f'no bundle {str(name_or_path)!r}: it is neither a folder nor a shipped bundle '
                      f"(shipped: {', '.join(known) or 'none'})")


class Bundle:
    """A validated bundle. `Bundle.load` reads it; graphs are read, and checked for damage, when an engine needs them.

    path, name; classes (tuple of ClassInfo); width, height of the network input in pixels; stages (graph names); split
    (None: all of it runs onboard). exits (tuple of Exit, the last one is the final output), of which onboard_exits and
    offboard_exits lie before and behind the split; judged_exits (all but the last): those at which a criterion may
    stop. experts (names, each a family of distortions whose heads may stand in for the exits' own: `exits_for`).
    criteria (names that can be chosen); feature_tensors (names of what travels); document (bundle.json).
    """

    def __init__(self, path: Path, document: dict):
        self.path, self.document = path, document
        self.name = document['name']
        self.classes = tuple(ClassInfo(entry['name'], tuple(entry['color'])) for entry in document['classes'])
        self.width, self.height = document['input']['width'], document['input']['height']
        self.graphs, self.tensors = document['graphs'], document['tensors']
        self.stages = tuple(document['stages'])
        self.split = document['split']
        self.exits = tuple(
            Exit(entry['name'], entry['stage'], entry['graph'], self.graphs[entry['graph']]['outputs'][0],
                 float(entry['temperature']), float(self.graphs[entry['graph']]['macs']),
                 not is_offboard(document, entry), entry.get('averaged', False)) for entry in document['exits'])
        self.onboard_exits = tuple(exit_ for exit_ in self.exits if exit_.onboard)
        self.offboard_exits = self.exits[len(self.onboard_exits):]
        self.judged_exits = self.exits[:-1]
        self.experts = tuple(document.get('experts', {}))
        self.criteria = tuple(document['criteria']) + ('always', 'never')
        self.feature_tensors = tuple(self.graphs[self.split['encode']]['outputs']) if self.split else ()

    @classmethod
    def load(cls, name_or_path: str) -> 'Bundle':
        """Load the shipped bundle of that name, or the bundle in that folder. Raises BundleError."""
        path = find_bundle(str(name_or_path))
        return cls(path, read_document(path))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over what the wire depends on: input, classes, tensors, graphs, experts, split and codec."""
        keys = ('input', 'classes', 'tensors', 'graphs', 'stages', 'split', 'codec')
        parts = {key: self.document[key] for key in keys}
        if self.experts:    # payloads name one
            parts['experts'] = {family: {name: entry['graph'] for name, entry in expert['exits'].items()}
                                for family, expert in self.document['experts'].items()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def exits_for(self, expert: str = '', criterion: str = '') -> tuple:
        """`exits` with the heads of an expert, where it has some; other exits keep their own, as all do for ''.

        criterion: only those at which it looks, and the last one (`last_exit`); '': all. Those by which single pixels
        stop may pass some by (`pixels.exits`). Raises BundleError that lists the experts if there is none of that name.
        """
        exits = self.exits if not expert else tuple(self._expert_exit(expert, exit_) for exit_ in self.exits)
        if criterion not in self.limits:
            return exits
        looked_at = self.document['pixels'].get('exits', [exit_.name for exit_ in self.judged_exits])
        return tuple(exit_ for exit_ in exits if exit_.name in (*looked_at, self.last_exit(expert)))

    def smoothing(self, expert: str) -> Optional[tuple]:
        """(sigma in pixels of the network input, share) of `frame.smoothed` for an expert; None: it has none."""
        found = self._expert(expert).get('smoothing') if expert else None
        return None if found is None else (float(found['sigma']), float(found['share']))

    def deblurs(self, expert: str) -> bool:
        """Whether blur is taken back, as the detector measures it, before an expert's images are segmented."""
        return bool(expert) and bool(self._expert(expert).get('deblurring', False))

    def per_strength(self, criterion: str, expert: str = '') -> float:
        """By how much a criterion's thresholds are stricter for an expert's strongest distortions than its mildest."""
        criteria = self._expert(expert)['criteria'] if expert else {}
        return float(criteria.get(criterion, {}).get('per_strength', 0.0))

    def last_exit(self, expert: str = '') -> str:
        """The exit behind which nothing runs: of an expert's frames the one that is best at them, else the last one.

        As its calibration found: exits further behind may have no head of its family, and be worse.
        """
        found = self._forwarding(expert)
        return found['last_exit'] if found else self.exits[-1].name

    def refines(self, expert: str = '', strength: Optional[float] = None) -> bool:
        """Whether forwarding is worth it: for an expert up to a strength of the distortion, if at all.

        As its calibration found; True if it has none. strength: as of `Engine.segment`.
        """
        found = self._forwarding(expert)
        return found is not None and (0.5 if strength is None else strength) <= found.get('up_to', 1.0)

    def _forwarding(self, expert):
        """{up_to, last_exit} of an expert; None: nothing is forwarded; {}: not known, or no expert."""
        return self._expert(expert).get('forwarding', {}) if expert and self.split is not None else {}

    def _expert_exit(self, expert, exit_):
        entry = self._expert(expert)['exits'].get(exit_.name)
        if entry is None:
            return exit_
        graph = self.graphs[entry['graph']]
        return replace(exit_, graph=entry['graph'], logits=graph['outputs'][0], temperature=float(entry['temperature']),
                       macs=float(graph['macs']), averaged=True, expert=expert)

    def _expert(self, expert):
        if expert not in self.experts:
            raise BundleError(f'bundle {self.name} has no expert {expert!r}: choose one of '
                              f"{', '.join(self.experts) or 'none (it has no experts)'}")
        return self.document['experts'][expert]

    @cached_property
    def palette(self) -> np.ndarray:
        """uint8 (256, 3): RGB colour by class id; black where there is no class."""
        palette = np.zeros((256, 3), np.uint8)
        palette[:len(self.classes)] = [info.color for info in self.classes]
        return palette

    @cached_property
    def gain(self) -> dict:
        """Exit name -> (bias float64 (m,), weights float64 (m, classes)) for its m later exits; {} without a model.

        In percentage points of mIoU per 1e9 multiply-accumulates, see `inference.gain`.
        """
        return {name: (np.array(model['bias'], np.float64), np.array(model['weights'], np.float64))
                for name, model in self.document.get('gain', {'exits': {}})['exits'].items()}

    @property
    def cells(self) -> Optional[tuple]:
        """(rows, columns) of the coarsest map behind the first exits, of which windows are cut; None: maps run whole.

        Finer maps there have a whole number of values per cell.
        """
        cells = self.document.get('cells')
        return None if cells is None else (cells['rows'], cells['columns'])

    @property
    def limits(self) -> dict:
        """Pixelwise criterion -> float32 (classes,): the probability above which a pixel of a class stops."""
        return {name: np.array(values, np.float32)
                for name, values in self.document.get('pixels', {'limits': {}})['limits'].items()}

    @property
    def forwards_cells(self) -> bool:
        """Whether frames are forwarded without their settled cells: it is known which they are, and what stands in."""
        return self.cells is not None and self.send_limits is not None and bool(self.class_means)

    def worth(self, criterion: str) -> tuple:
        """(onboard, offboard): mean doubt of a cell from which on it is worth running the stages of that side on it.

        Of a criterion that stops single pixels.
        """
        return tuple(self.document.get('pixels', {}).get('worth', {}).get(criterion, (0.0, 0.0)))

    @property
    def send_worth(self) -> float:
        """Mean doubt of a cell from which on it is worth forwarding."""
        return self.document.get('pixels', {}).get('send_worth', 0.0)

    @property
    def send_margin(self) -> int:
        """How far around pixels that are not settled, in values of the grid of 8 pixels, cells are sent as well."""
        return self.document.get('pixels', {}).get('send_margin', 0)

    @property
    def send_limits(self) -> Optional[np.ndarray]:
        """float32 (classes,): the probability above which a pixel's features need not be sent; None: not known."""
        limits = self.document.get('pixels', {}).get('send')
        return None if limits is None else np.array(limits, np.float32)

    @property
    def class_weights(self) -> Optional[np.ndarray]:
        """float32 (classes,): what doubt about a class weighs in the worth of a cell; None: all the same."""
        weights = self.document.get('pixels', {}).get('weights')
        return None if weights is None else np.array(weights, np.float32)

    @property
    def class_means(self) -> dict:
        """Feature tensor -> uint8 (classes, channels): mean levels of the cells of each class; {} if not known."""
        return {name: np.array(values, np.uint8)
                for name, values in (self.document['codec'] or {}).get('class_means', {}).items()}

    def path_to(self, exit_name: str) -> tuple:
        """Names of the graphs that one exit alone needs, in the order in which they run: a static network's.

        Raises BundleError that lists the exits if there is none of that name.
        """
        for entry in self.document['exits']:
            if entry['name'] == exit_name:
                return tuple(path_to(self.document, entry))
        raise BundleError(f'bundle {self.name} has no exit {exit_name!r}: choose one of '
                          f"{', '.join(exit_.name for exit_ in self.exits)}")

    def graph_bytes(self, graph: str) -> bytes:
        """The ONNX file of a graph; raises BundleError if it is missing or not the one that bundle.json describes."""
        return self.file_bytes(self.graphs[graph]['file'], self.graphs[graph]['sha256'])

    def file_bytes(self, file: str, sha256: str) -> bytes:
        """A file of the bundle; raises BundleError if it is missing or not the one with this SHA-256."""
        path = self.path / file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f'{path} cannot be read ({error.strerror}): copy the bundle again') from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BundleError(f'{path} is damaged or belongs to another bundle (its SHA-256 differs from the one in '
                              'bundle.json): copy the bundle again')
        return content

    @property
    def detector(self) -> Optional[dict]:
        """What bundle.json says of the detector of distortions, see `inference.detector`; None: there is none."""
        return self.document.get('detector')

    def thresholds(self, criterion: str, operating_point: str, expert: str = '') -> tuple:
        """Thresholds of an operating point, one per judged exit. Raises BundleError that lists what exists.

        expert: whose, for its mildest distortions (`per_strength`); where it has no such operating point, those of the
        exits' own heads serve. A bundle with a single exit has nothing to judge: any criterion will do.
        """
        if not self.judged_exits:
            return ()
        if criterion not in self.criteria:
            raise BundleError(f'bundle {self.name} has no criterion {criterion!r}: choose one of '
                              f"{', '.join(self.criteria)}")
        if criterion in ('always', 'never'):
            return (0.0,) * len(self.judged_exits)
        points = self.document['criteria'][criterion]['operating_points']
        if operating_point not in points:
            raise BundleError(f'criterion {criterion} of bundle {self.name} has no operating point '
                              f"{operating_point!r}: choose one of {', '.join(points)}")
        if expert:
            points = points | self._expert(expert)['criteria'].get(criterion, {}).get('operating_points', {})
        return tuple(float(value) for value in points[operating_point]['thresholds'])
