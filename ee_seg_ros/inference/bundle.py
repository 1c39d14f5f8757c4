# Copyright 2026 The ee_seg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle: a multi-exit model on disk, as a folder with `bundle.json` and ONNX files."""
import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Optional

import jsonschema
import numpy as np

from ee_seg_ros.inference.tiles import DENSE_ABOVE, Tiling

FORMAT = 1
OPERATING_POINTS = ('fast', 'balanced', 'accurate')
NO_EXPERT = ('', 'clean', 'auto', 'off')    # what no expert can be called
SEARCHED = 'searched'    # one more, of the criterion that a search chose: the thresholds that it found


class BundleError(ValueError):
    """A bundle that cannot be used; the message tells the user what was found, what was expected and what to do."""


@dataclass(frozen=True)
class ClassInfo:
    """A class: its name and its RGB colour (0..255). Its id is its place in `Bundle.classes`."""

    name: str
    color: tuple


@dataclass(frozen=True)
class Exit:
    """A head behind a stage. macs: the head's own multiply-accumulates. onboard: whether it lies before the split.

    expert: the family of distortions that the head was trained on; '' for the exit's own head.
    """

    name: str
    stage: str
    graph: str
    logits: str
    temperature: float
    macs: float
    onboard: bool
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


def _read(path):
    try:
        document = json.loads((path / 'bundle.json').read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise BundleError(f'{path}/bundle.json cannot be read ({error}): copy the bundle again') from None
    found = document.get('format') if isinstance(document, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise BundleError(f'{path} is a bundle of format {found}, newer than this version of ee_seg_ros understands '
                          f'(format {FORMAT}): update ee_seg_ros, or export the bundle again with this version')
    schema = json.loads((Path(__file__).parent / 'bundle.schema.json').read_text(encoding='utf-8'))
    try:
        jsonschema.validate(document, schema)
    except jsonschema.ValidationError as error:
        place = '/'.join(str(part) for part in error.absolute_path) or 'its top level'
        raise BundleError(f'{path}/bundle.json is not a valid bundle: at {place}: {error.message[:200]}') from None
    return document


def _check_references(document, path):
    """What a schema cannot say: every name that is used exists, and the sizes fit each other."""
    tensors, graphs = document['tensors'], document['graphs']

    def expect(known, name, what):
        if name not in known:
            raise BundleError(f'{path}/bundle.json names the {what} {name!r}, which it does not define')
    for graph in graphs.values():
        for tensor in graph['inputs'] + graph['outputs']:
            expect(tensors, tensor, 'tensor')
    for stage in document['stages']:
        expect(graphs, stage, 'graph')
    for exit_ in document['exits']:
        expect(document['stages'], exit_['stage'], 'stage')
        expect(graphs, exit_['graph'], 'graph')
    split = document['split']
    if split is not None:
        expect(document['stages'], split['after'], 'stage')
        expect(graphs, split['encode'], 'graph')
        expect(graphs, split['decode'], 'graph')
    wanted = [1, 3, document['input']['height'], document['input']['width']]
    if tensors.get('image', {}).get('shape') != wanted:
        raise BundleError(f"{path}/bundle.json: tensor 'image' must have the shape {wanted} of its input")
    for exit_ in document['exits']:
        shape = tensors[graphs[exit_['graph']]['outputs'][0]]['shape']
        if shape[1] != len(document['classes']):
            raise BundleError(f"{path}/bundle.json: exit {exit_['name']} puts out {shape[1]} classes, "
                              f"the bundle has {len(document['classes'])}")


def _check_order(document, path):
    """Exits lie one behind the other, on both sides of a split, and every graph finds its inputs on its own side."""
    stages, exits, split = document['stages'], document['exits'], document['split']
    places = [stages.index(exit_['stage']) for exit_ in exits]
    if places != sorted(places) or places[-1] != len(stages) - 1:
        raise BundleError(f'{path}/bundle.json: exits must be listed in the order of their stages, the last one behind '
                          'the last stage')
    if split is not None and (_is_offboard(document, exits[0]) or not _is_offboard(document, exits[-1])):
        raise BundleError(f"{path}/bundle.json: the split after {split['after']} must leave an exit on either side")
    if split is not None and document['codec'] is None:
        raise BundleError(f'{path}/bundle.json has a split, but no codec for the features')
    for exit_ in exits:
        known = {'image'}
        for name in _path_to(document, exit_):
            graph = document['graphs'][name]
            missing = [tensor for tensor in graph['inputs'] if tensor not in known]
            if missing:
                raise BundleError(f'{path}/bundle.json: graph {name} needs the tensor {missing[0]!r}, which no graph '
                                  'before it, on its side of the split, puts out')
            # Nothing passes the split but what the encoder puts out.
            known = set(graph['outputs']) | (set() if split is not None and name == split['encode'] else known)


def _check_thresholds(document, path):
    judged = len(document['exits']) - 1
    experts = document.get('experts', {})
    for where, criteria in [('', document['criteria']), *((f' of the expert {family}', expert['criteria'])
                                                          for family, expert in experts.items())]:
        for name, criterion in criteria.items():
            for point, values in criterion['operating_points'].items():
                if len(values['thresholds']) != judged:
                    raise BundleError(f'{path}/bundle.json: criterion {name}{where}, operating point {point} has '
                                      f"{len(values['thresholds'])} thresholds, expected one per exit but the last "
                                      f'({judged})')


def _check_experts(document, path):
    """Each expert's head reads what its exit's own head reads, or less, and puts out logits of the same shape."""
    exits = {exit_['name']: document['graphs'][exit_['graph']] for exit_ in document['exits']}
    for family, expert in document.get('experts', {}).items():
        if family in NO_EXPERT:
            raise BundleError(f'{path}/bundle.json calls an expert {family!r}, which means that there is none')
        for name, entry in expert['exits'].items():
            graph, own = document['graphs'].get(entry['graph']), exits.get(name)
            if graph is None or own is None:
                raise BundleError(f"{path}/bundle.json names an expert {family} of the exit {name!r} with the graph "
                                  f"{entry['graph']!r}, one of which it does not define")
            shapes = [document['tensors'][described['outputs'][0]]['shape'] for described in (graph, own)]
            if not set(graph['inputs']) <= set(own['inputs']) or shapes[0] != shapes[1]:
                raise BundleError(f'{path}/bundle.json: the expert {family} of exit {name} must read what the exit '
                                  'reads, and put out logits of the same shape')


def _check_tiles(document, path):
    """Tiles cut all maps behind the first exits into equal parts; limits and mean features are there for each class."""
    tile, count = document.get('tile'), len(document['classes'])
    pixels, codec, split = document.get('pixels'), document['codec'] or {}, document['split']
    stages, first, class_means = document['stages'], document['stages'][0], codec.get('class_means', {})
    cut = stages[1:] + [exit_['graph'] for exit_ in document['exits'] if exit_['stage'] != first]
    cut += [split['encode']] if split and class_means else []    # whose cells are sent one by one
    for name in () if tile is None else cut:
        for tensor in document['graphs'][name]['inputs'] + document['graphs'][name]['outputs']:
            height, width = document['tensors'][tensor]['shape'][2:]
            cells = tile['rows'] * tile['height'], tile['columns'] * tile['width']
            if (height, width) != (height // cells[0] * cells[0], height // cells[0] * cells[1]):
                raise BundleError(f'{path}/bundle.json: the map {tensor} of {width}x{height} is no multiple of the '
                                  f'{cells[1]}x{cells[0]} cells that `tile` speaks of')
    lists = [] if pixels is None else [*pixels['limits'].values(), pixels['send']]
    lists += class_means.values()
    if any(len(values) != count for values in lists):
        raise BundleError(f'{path}/bundle.json: `pixels` and `class_means` have an entry for each of the {count} '
                          'classes')
    needy = [name for name in ('class_threshold', 'uniform') if name in document['criteria']]
    if pixels is None and needy:
        raise BundleError(f'{path}/bundle.json has thresholds of the criterion {needy[0]}, but not the `pixels` that '
                          'it needs: calibrate the bundle again, with --statistics')
    sent = {name: document['tensors'][name]['shape'][1] for name in (
        document['graphs'][split['encode']]['outputs'] if split else ())}
    for name in {**class_means, **sent} if class_means else ():
        if any(len(mean) != sent.get(name) for mean in class_means.get(name, [[]])):
            raise BundleError(f'{path}/bundle.json: `class_means` of {name} have not as many channels as what is sent')


def _check_gain(document, path):
    """The model of the criterion `gain` speaks of all exits but the last, of all behind each, and of all classes."""
    if 'gain' not in document:
        if 'gain' in document['criteria']:
            raise BundleError(f'{path}/bundle.json has thresholds of the criterion gain, but not the model `gain` that '
                              'it needs: calibrate the bundle again')
        return
    names, models = [exit_['name'] for exit_ in document['exits']], document['gain']['exits']
    if sorted(models) != sorted(names[:-1]):
        raise BundleError(f"{path}/bundle.json: `gain` has models of the exits {', '.join(sorted(models)) or 'none'}, "
                          f"expected one of each but the last ({', '.join(names[:-1])}): calibrate the bundle again")
    for name, model in models.items():
        later, count = names[names.index(name) + 1:], len(document['classes'])
        if model['later'] != later:
            raise BundleError(f"{path}/bundle.json: `gain` of {name} speaks of {', '.join(model['later'])}, expected "
                              f"the exits behind it ({', '.join(later)}): calibrate the bundle again")
        shape = [len(model['bias']), [len(row) for row in model['weights']]]
        if shape != [len(later), [count] * len(later)]:
            raise BundleError(f'{path}/bundle.json: `gain` of {name} must have a bias and {count} weights, one a '
                              f'class, for each of {len(later)} later exits: calibrate the bundle again')


def _is_offboard(document, exit_):
    stages, split = document['stages'], document['split']
    return split is not None and stages.index(exit_['stage']) > stages.index(split['after'])


def _path_to(document, exit_):
    """Names of the graphs that this exit alone needs, in the order in which they run."""
    stages, split = document['stages'], document['split']
    graphs = []
    for stage in stages[:stages.index(exit_['stage']) + 1]:
        graphs.append(stage)
        if _is_offboard(document, exit_) and stage == split['after']:
            graphs += [split['encode'], split['decode']]
    return graphs + [exit_['graph']]


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
                 not _is_offboard(document, entry)) for entry in document['exits'])
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
        document = _read(path)
        _check_references(document, path)
        _check_order(document, path)
        _check_experts(document, path)
        _check_thresholds(document, path)
        _check_gain(document, path)
        _check_tiles(document, path)
        return cls(path, document)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over what the wire depends on: input, classes, tensors, graphs, experts, split and codec."""
        keys = ('input', 'classes', 'tensors', 'graphs', 'stages', 'split', 'codec')
        parts = {key: self.document[key] for key in keys}
        if self.experts:    # payloads name one
            parts['experts'] = {family: {name: entry['graph'] for name, entry in expert['exits'].items()}
                                for family, expert in self.document['experts'].items()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def exits_for(self, expert: str = '') -> tuple:
        """`exits` with the heads of an expert, where it has some; other exits keep their own, as all do for ''.

        Raises BundleError that lists the experts if there is none of that name.
        """
        return self.exits if not expert else tuple(self._expert_exit(expert, exit_) for exit_ in self.exits)

    def sharpening(self, expert: str) -> Optional[tuple]:
        """(sigma in pixels of the network input, amount) of `frame.sharpened` for an expert; None: it has none."""
        found = self._expert(expert).get('sharpening') if expert else None
        return None if found is None else (float(found['sigma']), float(found['amount']))

    def _expert_exit(self, expert, exit_):
        entry = self._expert(expert)['exits'].get(exit_.name)
        if entry is None:
            return exit_
        graph = self.graphs[entry['graph']]
        return replace(exit_, graph=entry['graph'], logits=graph['outputs'][0], temperature=float(entry['temperature']),
                       macs=float(graph['macs']), expert=expert)

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

    @cached_property
    def tiling(self) -> Optional[Tiling]:
        """How maps behind the first exits are cut into tiles; None: stages run on whole maps only."""
        tile = self.document.get('tile')
        return None if tile is None else Tiling(**tile)

    @property
    def limits(self) -> dict:
        """Pixelwise criterion -> float32 (classes,): the probability above which a pixel of a class stops."""
        return {name: np.array(values, np.float32)
                for name, values in self.document.get('pixels', {'limits': {}})['limits'].items()}

    @property
    def forwards_cells(self) -> bool:
        """Whether frames are forwarded without their settled cells: it is known which they are, and what stands in."""
        return self.tiling is not None and self.send_limits is not None and bool(self.class_means)

    @property
    def tile_share(self) -> float:
        """Share of a tile's pixels that may be unsettled without later stages running on it."""
        return self.document.get('pixels', {}).get('tile_share', 0.0)

    @property
    def dense_above(self) -> dict:
        """`onboard`, `offboard`: share of active tiles above which the stages of that side run on whole maps."""
        stored = self.document.get('pixels', {}).get('dense_above', DENSE_ABOVE)
        return stored if isinstance(stored, dict) else {'onboard': stored, 'offboard': stored}

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
                return tuple(_path_to(self.document, entry))
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

        expert: whose; where it has no such operating point, those of the exits' own heads serve. A bundle with a single
        exit has nothing to judge: any criterion will do.
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
