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
"""What is written from the declaration of parameters says the same as the declaration."""
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ee_seg_ros.nodes import parameter_files, parameters
from ee_seg_ros.nodes.parameters import Parameter

ROOT = Path(__file__).resolve().parents[2]
AGAIN = 'run: python3 -m ee_seg_ros.nodes.parameter_files'
NODES = {name.lower() for name, value in vars(parameters).items()
         if name.isupper() and not name.startswith('_') and isinstance(value, tuple)
         and all(isinstance(each, Parameter) for each in value)}


def readme():
    return '\n'.join(page.read_text(encoding='utf-8') for page in parameter_files.PAGES)


def test_the_pages_have_the_parameters_of_every_node():
    marks = re.findall('<!-- parameters of ([a-z, ]+)', readme())
    assert {'onboard', 'offboard', 'ground', 'camera', 'recorder'} <= NODES
    assert {name for mark in marks for name in re.split(', *', mark.strip())} == NODES
    assert parameter_files.with_tables(readme()) == readme(), AGAIN


@pytest.mark.parametrize('node', parameter_files.FILES)
def test_parameter_files_are_as_declared(node):
    text = (ROOT / 'config' / f'{node}.yaml').read_text(encoding='utf-8')
    assert text == parameter_files.parameter_file(node), AGAIN
    table = parameter_files.table_of(node)
    assert yaml.safe_load(text) == {'/**': {'ros__parameters': {
        each.name: each.default for each in table if each.default != []}}}
    for each in table:
        assert f'{each.name}: ' in text and max(map(len, text.splitlines())) <= 120


def test_a_changed_declaration_changes_the_pages(monkeypatch):
    """So that the test above can fail."""
    for number, change in enumerate(({'default': 5}, {'low': 0}, {'when': 'start'}, {'description': 'Other.'})):
        with monkeypatch.context() as changed:
            changed.setattr(parameters, 'OFFBOARD', tuple(
                replace(each, **change) if each.name == 'threads' else each for each in parameters.OFFBOARD))
            assert parameter_files.with_tables(readme()) != readme(), number


def test_a_table_says_all_of_a_parameter(monkeypatch):
    table = (Parameter('rate', 'float', 2.5, 'How often.', 0.5, 60.0),
             Parameter('mode', 'str', 'a', 'How.', choices=('a', 'b'), when='configure'),
             Parameter('names', 'strs', [], 'Who.', when='start'))
    monkeypatch.setattr(parameters, 'OTHER', table, raising=False)
    assert parameter_files.markdown(['other']).splitlines()[2:] == [
        '| `rate` | `2.5` | number, 0.5 to 60 | live | How often. |',
        '| `mode` | `a` | `a`, `b` | on configure | How. |',
        '| `names` | `[]` | texts | read-only | Who. |']
