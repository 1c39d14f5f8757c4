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
"""/diagnostics through diagnostic_updater and by hand: the same statuses, at the period and at every change."""
import importlib.util
import sys
import time

import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: source a distribution, or install its wheels')

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402

from ee_seg_ros.nodes import diagnostics  # noqa: E402

PATIENCE = 30.0


@pytest.fixture(params=['by hand', 'diagnostic_updater'])
def module(request, monkeypatch):
    """The module as it is with, and without, diagnostic_updater."""
    if request.param == 'by hand':
        monkeypatch.setitem(sys.modules, 'diagnostic_updater', None)
    else:
        pytest.importorskip('diagnostic_updater', reason='no diagnostic_updater (apt: ros-DISTRO-diagnostic-updater)')
    spec = importlib.util.spec_from_file_location('diagnostics_under_test', diagnostics.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)    # dataclasses look there
    spec.loader.exec_module(module)
    assert (module.Updater is None) == (request.param == 'by hand')
    return module


@pytest.fixture
def world(module):
    """(node that reports what `said` holds, arrays that came on /diagnostics, spin(condition))."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('cook', namespace='/kitchen', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    came = []
    node.create_subscription(DiagnosticArray, '/diagnostics', came.append, 100)

    def spin(condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, [array.status for array in came]
            executor.spin_once(timeout_sec=0.05)
    spin(lambda: node.count_publishers('/diagnostics') == 0)
    yield node, came, spin
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_the_same_statuses_either_way(module, world):
    node, came, spin = world
    hot = module.Finding(module.WARN, 'hot', {'degrees': 251.5, 'open': False, 'last': None})
    reporting = module.Diagnostics(node, ('oven', 'sink'), lambda: {
        '': module.whole([hot], 'working'), 'oven': hot, 'sink': module.Finding(module.OK, 'dry')})
    reporting.setHardwareID('kitchen 7')
    spin(lambda: came and came[-1].status[0].hardware_id == 'kitchen 7')
    whole, oven, sink = came[-1].status
    assert [whole.name, oven.name, sink.name] == ['kitchen/cook', 'kitchen/cook: oven', 'kitchen/cook: sink']
    assert [whole.level, oven.level, sink.level] == [module.WARN, module.WARN, module.OK]
    assert (oven.message, sink.message) == ('hot', 'dry')
    for status in (whole, oven):
        assert {pair.key: pair.value for pair in status.values} == {'degrees': '251.5', 'open': 'false', 'last': ''}
    assert came[-1].header.stamp.sec > 0
    first = len(came)
    spin(lambda: len(came) >= first + 2)    # goes on, though nothing changes


def test_what_changes_is_published_at_once(module, world, monkeypatch):
    node, came, spin = world
    monkeypatch.setattr(module, 'PERIOD_S', 1e6)    # so that nothing else publishes
    said = [module.Finding(module.OK, 'fine', {'figure': 1})]
    module.Diagnostics(node, (), lambda: {'': said[0]})

    def messages():
        return [array.status[0].message for array in came]
    spin(lambda: 'fine' in messages())
    said[0] = module.Finding(module.OK, 'fine', {'figure': 2})    # figures alone are no news
    looks = []
    node.create_timer(3 * module.LOOK_S, lambda: looks.append(1))
    spin(lambda: len(looks) >= 2)
    assert messages().count('fine') == 1
    for finding in (module.Finding(module.ERROR, 'fine', {'figure': 3}), module.Finding(module.ERROR, 'burnt')):
        said[0] = finding
        spin(lambda: (came[-1].status[0].level, came[-1].status[0].message) == (finding.level, finding.message))


def test_counts_look_back_one_second(module, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, 'monotonic', lambda: now[0])
    tally = module.Tally()
    for _ in range(10):    # two a look
        tally.count('frames', 2)
        now[0] += 0.25
        total, since, seconds = tally.report()
    assert total['frames'] == 20
    assert (since['frames'], seconds) == (8, 1.0)
    for _ in range(5):
        now[0] += 0.25
        _, since, seconds = tally.report()
    assert since['frames'] == 0 and tally.report()[0]['frames'] == 20
