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
"""What a bundle says of itself, for `ee_seg info`."""
from ee_seg_ros.evaluation.evaluate import exit_costs, static_costs
from ee_seg_ros.evaluation.report import console, giga, points, table
from ee_seg_ros.inference.bundle import Bundle


def describe(bundle: Bundle) -> dict:
    """Everything worth knowing of a bundle, as plain JSON types.

    An exit's `macs` are those of stopping there, all heads passed included, its `static_macs` those of the exit as a
    network alone. Keys of figures that the bundle does not state are absent.
    """
    exits = []
    measured = _measured(bundle.document['provenance'])
    for exit_, macs, alone in zip(bundle.exits, exit_costs(bundle), static_costs(bundle)):
        entry = {'name': exit_.name, 'onboard': exit_.onboard, 'macs': macs, 'static_macs': alone,
                 'temperature': exit_.temperature}
        if exit_.name in measured:
            entry['miou'] = measured[exit_.name]
        exits.append(entry)
    files = {path.name: path.stat().st_size for path in sorted(bundle.path.iterdir()) if path.is_file()}
    return {
        'name': bundle.name, 'path': str(bundle.path), 'fingerprint': bundle.fingerprint,
        'classes': [{'name': info.name, 'color': list(info.color)} for info in bundle.classes],
        'input': bundle.document['input'], 'exits': exits,
        'features': {name: bundle.tensors[name] for name in bundle.feature_tensors},
        'experts': {family: {'exits': {exit_.name: {'macs': exit_.macs, 'temperature': exit_.temperature}
                                       for exit_ in bundle.exits_for(family) if exit_.expert},
                             'criteria': _without_curves(expert['criteria']),
                             **({'forwarding': expert['forwarding']} if 'forwarding' in expert else {})}
                    for family, expert in bundle.document.get('experts', {}).items()},
        **({'detector': bundle.detector} if bundle.detector is not None else {}),
        'criteria': _without_curves(bundle.document['criteria']),
        'provenance': bundle.document['provenance'], 'files': files, 'bytes': sum(files.values()),
    }


def _without_curves(criteria):
    return {name: {key: value for key, value in criterion.items() if key != 'curve'}
            for name, criterion in criteria.items()}


def _measured(provenance):
    """mIoU by exit, where the provenance states it."""
    measured = provenance.get('measured', {})
    found = measured.get('miou', measured) if isinstance(measured, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def show(document: dict) -> None:
    """Print what `describe` found as tables."""
    size = document['input']
    console.print(table(f"bundle {document['name']}", ['', ''], [
        ['fingerprint', document['fingerprint']], ['folder', document['path']],
        ['input', f"{size['width']}x{size['height']}"],
        ['classes', ', '.join(info['name'] for info in document['classes'])],
        ['features', ', '.join(f"{name} {'x'.join(map(str, tensor['shape'][1:]))} {tensor['dtype']}"
                               for name, tensor in document['features'].items()) or 'none: all of it runs onboard'],
        ['detector of', ', '.join(document.get('detector', {'families': ['nothing: it has none']})['families'])],
        *([key, str(value)] for key, value in document['provenance'].items() if isinstance(value, (str, int, float)))],
        2))
    rows = [[exit_['name'], 'onboard' if exit_['onboard'] else 'offboard', giga(exit_['macs']),
             giga(exit_['static_macs']), points(exit_['miou']) if 'miou' in exit_ else '',
             f"{exit_['temperature']:.3f}"]
            for exit_ in document['exits']]
    console.print(table('exits (cost of stopping there, and of the exit without the heads before it)',
                        ['exit', 'where', 'GMAC', 'alone', 'mIoU', 'temperature'], rows, 2))
    rows = [[name, point, ' '.join(f'{value:.4f}' for value in values['thresholds']),
             *(f'{values[key]:.3f}' if key in values else '' for key in ('miou', 'forwarded_share', 'promise'))]
            for name, criterion in document['criteria'].items()
            for point, values in criterion['operating_points'].items()]
    console.print(table('criteria', ['criterion', 'point', 'thresholds', 'mIoU', 'forwarded', 'promise'], rows, 3))
    rows = [[family, name, giga(exit_['macs']), f"{exit_['temperature']:.3f}"]
            for family, expert in document['experts'].items() for name, exit_ in expert['exits'].items()]
    if rows:
        console.print(table('experts (cost of the head alone)', ['expert', 'exit', 'GMAC', 'temperature'], rows, 2))
    rows = [[family, *(['never', ''] if expert['forwarding'] is None else
                       [f"up to {expert['forwarding']['up_to']:.2f}", expert['forwarding']['last_exit']])]
            for family, expert in document['experts'].items() if 'forwarding' in expert]
    if rows:
        console.print(table('forwarded, by strength', ['expert', 'forwarded', 'end at'], rows, 3))
    rows = [[name, f'{count / 1e6:.3f}'] for name, count in document['files'].items()]
    console.print(table('files', ['file', 'MB'], [*rows, ['all', f"{document['bytes'] / 1e6:.3f}"]]))
