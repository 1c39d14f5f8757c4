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
"""What is written from the declaration of parameters: the tables in README.md and docs, the files config/NODE.yaml.

`python3 -m ee_seg_ros.nodes.parameter_files`, in the source tree, writes them anew; a test holds them equal. Needs no
ROS.
"""
import json
import re
import textwrap
from pathlib import Path

from ee_seg_ros.nodes import parameters
from ee_seg_ros.nodes.parameters import CONFIGURE, LIVE, START, Parameter

ROOT = Path(__file__).resolve().parents[2]
FILES = ('onboard', 'offboard', 'ground')    # nodes with a parameter file
PAGES = (ROOT / 'README.md', ROOT / 'docs/parameters.md')
_MARKED = re.compile(r'(<!-- parameters of ([a-z, ]+)[^>]*-->\n).*?(<!-- end of parameters -->)', re.DOTALL)
_WHEN = {LIVE: 'live', CONFIGURE: 'on configure', START: 'read-only'}


def table_of(node: str) -> tuple:
    """The parameters of a node."""
    return getattr(parameters, node.upper())


def text_of(value) -> str:
    """A value as in YAML."""
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else json.dumps(value).strip('"') or "''"


def takes(parameter: Parameter) -> str:
    """What a parameter takes, for a cell of a table."""
    if parameter.choices:
        return ', '.join(f'`{choice}`' for choice in parameter.choices)
    kinds = {'bool': 'true, false', 'int': 'whole number', 'float': 'number', 'str': 'text', 'floats': 'numbers',
             'strs': 'texts'}
    if parameter.low is None:
        return kinds[parameter.kind]
    return f'{kinds[parameter.kind]}, {parameter.low:.10g} to {parameter.high:.10g}'


def markdown(nodes: list) -> str:
    """A table of the parameters of some nodes, each once; with the nodes it belongs to, if they are several."""
    found = []
    for parameter in (each for node in nodes for each in table_of(node)):
        if parameter not in found:
            found.append(parameter)
    several = len(nodes) > 1
    head = ['parameter', *(['of'] if several else []), 'default', 'takes', 'can be set', 'what it is']
    rows = [head, ['---'] * len(head)]
    for parameter in found:
        owners = [node for node in nodes if parameter in table_of(node)]
        of = ['both' if len(owners) == len(nodes) == 2 else ', '.join(owners)] if several else []
        rows.append([f'`{parameter.name}`', *of, f'`{text_of(parameter.default)}`', takes(parameter),
                     _WHEN[parameter.when], parameter.description])
    return ''.join(f"| {' | '.join(row)} |\n" for row in rows)


def with_tables(text: str) -> str:
    """A Markdown text with the tables between its marks written anew."""
    return _MARKED.sub(lambda found: found[1] + markdown(re.split(', *', found[2].strip())) + found[3], text)


def parameter_file(node: str) -> str:
    """The text of config/NODE.yaml."""
    lines = [f'# Parameters of the {node} node, with their defaults.', '/**:', '  ros__parameters:']
    for parameter in table_of(node):
        said = f'{parameter.description} Expected: {parameter.expected}.'
        if parameter.when != LIVE:
            said += ' Read when the ' + ('node is configured.' if parameter.when == CONFIGURE else 'process starts.')
        lines += textwrap.wrap(said, 120, initial_indent='    # ', subsequent_indent='    # ', break_on_hyphens=False)
        # ROS takes an empty list in a file for no value at all.
        lines.append(f"    {'# ' if parameter.default == [] else ''}{parameter.name}: {text_of(parameter.default)}")
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Write them into the source tree."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding='utf-8')), encoding='utf-8')
    for node in FILES:
        (ROOT / 'config' / f'{node}.yaml').write_text(parameter_file(node), encoding='utf-8')


if __name__ == '__main__':
    main()
