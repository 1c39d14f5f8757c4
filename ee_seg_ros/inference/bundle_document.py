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
"""bundle.json as it lies on disk: read, and checked by its schema and for what a schema cannot say."""
import json
from pathlib import Path

import jsonschema

FORMAT = 1
NO_EXPERT = ('', 'clean', 'auto', 'off')    # what no expert can be called


class BundleError(ValueError):
    """A bundle that cannot be used; the message tells the user what was found, what was expected and what to do."""


def read_document(path: Path) -> dict:
    """The checked bundle.json of a bundle's folder. Raises BundleError that says what is wrong with it."""
    document = _read(path)
    for check in (_check_references, _check_order, _check_experts, _check_thresholds, _check_gain, _check_cells):
        check(document, path)
    return document


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
    if split is not None and (is_offboard(document, exits[0]) or not is_offboard(document, exits[-1])):
        raise BundleError(f"{path}/bundle.json: the split after {split['after']} must leave an exit on either side")
    if split is not None and document['codec'] is None:
        raise BundleError(f'{path}/bundle.json has a split, but no codec for the features')
    for exit_ in exits:
        known = {'image'}
        for name in path_to(document, exit_):
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
    """Each expert's head reads what its exit's own head reads, or less, and puts out logits of the same shape.

    What an expert forwards ends at an exit behind the split.
    """
    exits = {exit_['name']: document['graphs'][exit_['graph']] for exit_ in document['exits']}
    for family, expert in document.get('experts', {}).items():
        if family in NO_EXPERT:
            raise BundleError(f'{path}/bundle.json calls an expert {family!r}, which means that there is none')
        for name, entry in expert['exits'].items():
            graph, own = document['graphs'].get(entry['graph']), exits.get(name)
            if graph is None or own is None:
                raise BundleError(f'{path}/bundle.json names an expert {family} of the exit {name!r} with the graph '
                                  f"{entry['graph']!r}, one of which it does not define")
            shapes = [document['tensors'][described['outputs'][0]]['shape'] for described in (graph, own)]
            if not set(graph['inputs']) <= set(own['inputs']) or shapes[0] != shapes[1]:
                raise BundleError(f'{path}/bundle.json: the expert {family} of exit {name} must read what the exit '
                                  'reads, and put out logits of the same shape')
        last = (expert.get('forwarding') or {}).get('last_exit')
        if last is not None and last not in [exit_['name'] for exit_ in document['exits']
                                             if is_offboard(document, exit_)]:
            raise BundleError(f'{path}/bundle.json: what the expert {family} forwards ends at {last!r}, which is no '
                              'exit behind the split')


def _check_cells(document, path):
    """All maps behind the first exits are multiples of the cells; limits and mean features are there for each class."""
    cells, count = document.get('cells'), len(document['classes'])
    pixels, codec, split = document.get('pixels'), document['codec'] or {}, document['split']
    stages, first, class_means = document['stages'], document['stages'][0], codec.get('class_means', {})
    cut = stages[1:] + [exit_['graph'] for exit_ in document['exits'] if exit_['stage'] != first]
    cut += [split['encode']] if split and class_means else []    # whose cells are sent one by one
    for name in () if cells is None else cut:
        for tensor in document['graphs'][name]['inputs'] + document['graphs'][name]['outputs']:
            height, width = document['tensors'][tensor]['shape'][2:]
            rows, columns = cells['rows'], cells['columns']
            if (height, width) != (height // rows * rows, height // rows * columns):
                raise BundleError(f'{path}/bundle.json: the map {tensor} of {width}x{height} is no multiple of the '
                                  f'{columns}x{rows} cells that `cells` speaks of')
    lists = [] if pixels is None else [*pixels['limits'].values(), pixels['send']]
    lists += [pixels['weights']] if pixels is not None and 'weights' in pixels else []
    lists += class_means.values()
    if any(len(values) != count for values in lists):
        raise BundleError(f'{path}/bundle.json: `pixels` and `class_means` have an entry for each of the {count} '
                          'classes')
    judged = [exit_['name'] for exit_ in document['exits'][:-1]]
    onboard = [exit_['name'] for exit_ in document['exits'][:-1] if not is_offboard(document, exit_)]
    looked_at = (pixels or {}).get('exits')
    if looked_at is not None and not set(onboard[-1:] if split else ()) <= set(looked_at) <= set(judged):
        raise BundleError(f"{path}/bundle.json: `pixels` looks at the exits {', '.join(looked_at) or 'none'}, expected "
                          f"some of {', '.join(judged)}, the last one onboard among them")
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


def is_offboard(document: dict, exit_: dict) -> bool:
    """Whether an exit (its entry in the document) lies behind the split."""
    stages, split = document['stages'], document['split']
    return split is not None and stages.index(exit_['stage']) > stages.index(split['after'])


def path_to(document: dict, exit_: dict) -> list:
    """Names of the graphs that this exit alone needs, in the order in which they run."""
    stages, split = document['stages'], document['split']
    graphs = []
    for stage in stages[:stages.index(exit_['stage']) + 1]:
        graphs.append(stage)
        if is_offboard(document, exit_) and stage == split['after']:
            graphs += [split['encode'], split['decode']]
    return graphs + [exit_['graph']]
