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
"""Every kind of wrong value of every parameter of the two nodes, set on the real nodes: refused, and told why."""
import math

import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')

from rclpy.parameter import Parameter  # noqa: E402
from rclpy.signals import SignalHandlerOptions  # noqa: E402

from ee_seg_ros.nodes import parameters  # noqa: E402
from ee_seg_ros.nodes.offboard import Offboard  # noqa: E402
from ee_seg_ros.nodes.onboard import Onboard  # noqa: E402
from ee_seg_ros.nodes.parameter_files import FILES, ROOT  # noqa: E402

NODES = {'onboard': Onboard, 'offboard': Offboard}
# None is what `ros2 param delete` sends.
WRONG = {'bool': [1, 'yes', None], 'int': [1.5, 'two', True, [1], None], 'float': ['fast', True, math.nan, [1.0], None],
         'str': [3, True, ['a'], None], 'floats': [0.5, 'a', ['a'], [0.1, math.nan]], 'strs': ['a', 1, [1]]}


@pytest.fixture(params=sorted(NODES))
def node(request):
    """(table, node with the defaults of its parameter file, not configured)."""
    rclpy.init(args=['--ros-args', '--params-file', str(ROOT / 'config' / f'{request.param}.yaml')],
               signal_handler_options=SignalHandlerOptions.NO)
    made = NODES[request.param]()
    yield getattr(parameters, request.param.upper()), made
    made.stop()
    made.destroy_node()
    rclpy.shutdown()


def wrong_values(parameter):
    values = list(WRONG[parameter.kind])
    if parameter.low is not None:
        step = 1 if parameter.kind == 'int' else 0.001
        values += [parameter.low - step, parameter.high + step]
    return values + (['bogus', ''] if parameter.choices else [])


def test_every_wrong_value_is_refused_with_the_reason(node):
    table, made = node
    assert set(FILES) - {'ground'} == set(NODES)    # of which all are read-only
    for parameter in table:
        for value in wrong_values(parameter):
            result, = made.set_parameters([Parameter(parameter.name, value=value)])
            what = f'{parameter.name} = {value!r}: {result.reason}'
            assert not result.successful, what
            hints = [', '.join(parameter.choices) or parameter.expected]
            if parameter.when == 'start':
                hints = ['read-only']
            elif 'out of range' in result.reason:    # rclpy looks at ranges before it asks the node
                hints = [f'Min: {parameter.low}', f'Max: {parameter.high}', f'value: {value}']
            for hint in [parameter.name, *hints]:
                assert hint in result.reason, what
        assert made.values[parameter.name] == parameter.default
        if parameter.default != []:    # which ROS holds for no value
            assert made.get_parameter(parameter.name).value == parameter.default
        assert parameter.description == made.describe_parameter(parameter.name).description


def test_one_wrong_value_refuses_all_that_is_set_together(node):
    _, made = node
    result = made.set_parameters_atomically([Parameter('threads', value=3), Parameter('criterion', value='bogus')])
    assert not result.successful and "criterion is 'bogus'" in result.reason
    assert made.values['threads'] == made.get_parameter('threads').value == 2


def test_what_the_bundle_does_not_have_is_refused_while_it_is_loaded(node):
    _, made = node
    made.start()
    for name, value, hint in (('thresholds', [0.5], 'one per exit but the last'),
                              ('operating_point', 'searched', 'no operating point'),
                              ('bundle', 'street_twin', 'clean up'), ('threads', 1, 'clean up'),
                              ('autostart', False, 'read-only')):
        result, = made.set_parameters([Parameter(name, value=value)])
        assert not result.successful and hint in result.reason, result.reason
    assert made.set_parameters([Parameter('criterion', value='entropy')])[0].successful
