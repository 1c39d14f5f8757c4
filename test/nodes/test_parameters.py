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
"""The declaration of parameters: their defaults fit, wrong values are told why."""
import array
from types import SimpleNamespace

import pytest
from tiny import tiny_bundle

from ee_seg_ros.inference.bundle import Bundle, BundleError
from ee_seg_ros.nodes.parameters import (
    CAMERA,
    GROUND,
    OFFBOARD,
    ONBOARD,
    RECORDER,
    Parameter,
    ParameterError,
    checked,
    expert_of,
    thresholds_by_expert,
    thresholds_of,
)

TABLES = (ONBOARD, OFFBOARD, GROUND, CAMERA, RECORDER)


@pytest.mark.parametrize('table', TABLES)
def test_defaults_pass_their_own_check_and_names_are_unique(table):
    assert len({parameter.name for parameter in table}) == len(table)
    for parameter in table:
        assert parameter.check(parameter.default) == parameter.default
        assert parameter.description.endswith('.') and parameter.when in ('live', 'configure', 'start')


@pytest.mark.parametrize('parameter, value, expected', [
    (Parameter('x', 'float', 1.0, '', 0.0, 5.0), 3, 3.0),
    (Parameter('x', 'floats', [], ''), [1, 0], [1.0, 0.0]),
    (Parameter('x', 'floats', [], ''), array.array('d', [0.5]), [0.5]),
    (Parameter('x', 'strs', [], ''), [], []),
    (Parameter('x', 'str', '', '', choices=('a', 'b')), 'b', 'b'),
    (Parameter('x', 'int', 1, '', 1, 4), 4, 4),
])
def test_fitting_values_are_taken(parameter, value, expected):
    found = parameter.check(value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize('parameter, value, reason', [
    (Parameter('rate', 'float', 1.0, '', 0.0, 5.0), 5.5, 'rate is 5.5: expected a number from 0.0 to 5.0'),
    (Parameter('rate', 'float', 1.0, ''), float('nan'), 'rate is nan: expected a number'),
    (Parameter('rate', 'float', 1.0, ''), True, 'rate is True: expected a number'),
    (Parameter('n', 'int', 1, '', 1, 4), 2.0, 'n is 2.0: expected a whole number from 1 to 4'),
    (Parameter('n', 'int', 1, '', 1, 4), False, 'n is False: expected a whole number from 1 to 4'),
    (Parameter('on', 'bool', True, ''), 1, 'on is 1: expected true or false'),
    (Parameter('who', 'str', '', '', choices=('a', 'b')), 'c', "who is 'c': choose one of a, b"),
    (Parameter('who', 'str', '', ''), None, 'who is None: expected a text'),
    (Parameter('them', 'strs', [], ''), 'a', "them is 'a': expected a list of texts, such as \\['a', 'b'\\]"),
    (Parameter('them', 'floats', [], ''), ['a'], "them is 'a': expected a list of numbers"),
    (Parameter('them', 'floats', [], ''), 0.5, 'them is 0.5: expected a list of numbers'),
])
def test_other_values_are_refused_with_the_reason(parameter, value, reason):
    with pytest.raises(ParameterError, match=reason):
        parameter.check(value)


def test_what_on_configure_reads_is_refused_while_configured():
    changes = [SimpleNamespace(name='bundle', value='other')]
    assert checked(ONBOARD, changes, configured=False) == {'bundle': 'other'}
    with pytest.raises(ParameterError, match='clean up'):
        checked(ONBOARD, changes, configured=True)


def test_parameters_of_rclpy_itself_pass():
    assert checked(ONBOARD, [SimpleNamespace(name='use_sim_time', value=True)], configured=True) == {}


def test_both_sides_judge_alike_unless_told_otherwise():
    """An operating point was measured on both sides together: it holds only if both take the same."""
    judging = [{parameter.name: parameter for parameter in table} for table in (ONBOARD, OFFBOARD)]
    for name in ('criterion', 'operating_point', 'thresholds'):
        assert judging[0][name] == judging[1][name] and judging[0][name].when == 'live'
    assert [judging[0]['operating_point'].check(point) for point in ('fast', 'searched')] == ['fast', 'searched']


def test_thresholds_are_those_of_the_operating_point_unless_they_are_given():
    bundle = Bundle.load('street')
    values = {'criterion': 'entropy', 'operating_point': 'fast', 'thresholds': []}
    assert thresholds_of(values, bundle) == bundle.thresholds('entropy', 'fast')
    given = [0.1 * number for number in range(len(bundle.judged_exits))]
    assert thresholds_of({**values, 'thresholds': given}, bundle) == tuple(given)
    for wrong in (given + [0.5], given[1:]):
        names = ', '.join(exit_.name for exit_ in bundle.judged_exits)
        with pytest.raises(ParameterError, match=rf'has {len(wrong)} values: .* one per exit but the last \({names}\)'):
            thresholds_of({**values, 'thresholds': wrong}, bundle)
    with pytest.raises(BundleError, match="has no operating point 'best': choose one of fast, balanced, accurate"):
        thresholds_of({**values, 'operating_point': 'best'}, bundle)
    bundle.document['criteria']['entropy']['operating_points']['searched'] = {'thresholds': given}
    assert thresholds_of({**values, 'operating_point': 'searched'}, bundle) == tuple(given)
    with pytest.raises(BundleError, match='choose one of entropy'):
        thresholds_of({**values, 'criterion': 'bogus'}, bundle)


def test_the_expert_is_one_that_the_bundle_has(tmp_path):
    bundle = Bundle.load(tiny_bundle(tmp_path / 'expert', experts={'blur': ['exit1']}))
    for value in ('auto', 'off', 'blur'):
        assert expert_of({'expert': value}, bundle) == value
    with pytest.raises(ParameterError, match="expert is 'noise': bundle expert knows auto, off, blur"):
        expert_of({'expert': 'noise'}, bundle)
    values = {'criterion': 'entropy', 'operating_point': 'fast', 'thresholds': []}
    assert thresholds_by_expert(values, bundle) == {'': (0.5,) * 4, 'blur': (0.25,) * 4}
    given = {**values, 'thresholds': [0.1] * 4}    # explicit ones win
    assert thresholds_by_expert(given, bundle) == {'': (0.1,) * 4, 'blur': (0.1,) * 4}


def test_a_bare_off_is_the_text_off():
    """YAML, and so ROS's parameter files and command line, make `false` of it."""
    expert = next(parameter for parameter in ONBOARD if parameter.name == 'expert')
    assert expert.check(False) == expert.check('off') == 'off'
    with pytest.raises(ParameterError, match='expert is True'):
        expert.check(True)
