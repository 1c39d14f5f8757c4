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
"""When a part of a node is well and when not, by its figures; and that a change is seen within two seconds."""
from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip('diagnostic_msgs', reason='needs ROS 2: source a distribution, or install its wheels')

from ee_seg_ros.nodes import health, parameters, qos  # noqa: E402
from ee_seg_ros.nodes.diagnostics import ERROR, LOOK_S, OK, PERIOD_S, WARN, WINDOW_S, Finding, whole  # noqa: E402

SEEN_S = 2.0


def test_every_change_is_seen_within_two_seconds():
    """What makes a change known, and the time until the node looks, leave some for the way of the message."""
    timeout, = (each.default / 1e3 for each in parameters.ONBOARD if each.name == 'camera_timeout_ms')
    lease = qos.LEASE.nanoseconds / 1e9
    for known_after in (timeout, lease, WINDOW_S + LOOK_S):
        assert known_after + LOOK_S < SEEN_S - 0.2
    assert PERIOD_S == 1.0


@pytest.mark.parametrize('silent, since, level, words', [
    (0.4, {'arrived': 10}, OK, 'images come'),
    (1.4, {}, OK, 'images come'),
    (1.6, {}, WARN, 'no images on /image for more than 1.5 s'),
    (8.0, {}, ERROR, 'no images on /image'),
    (0.1, {'arrived': 10, 'bad_images': 1}, WARN, 'refused'),
    (0.1, {'arrived': 10, 'bad_images': 10}, ERROR, 'refused'),
])
def test_camera(silent, since, level, words):
    finding = health.camera('/image', silent, 1.5, Counter(bad_images=12), Counter(since), 2.0)
    assert finding.level == level and words in finding.message
    assert finding.values['image_rate'] == since.get('arrived', 0) / 2 and finding.values['bad_images'] == 12


@pytest.mark.parametrize('since, running_ms, max_rate, level, words', [
    ({}, 0, 0, OK, 'keeping up'),
    ({'arrived': 30, 'dropped': 1, 'worked': 29, 'work_ms': 600}, 0, 0, OK, 'keeping up'),
    ({'arrived': 30, 'dropped': 2, 'worked': 28, 'work_ms': 600}, 0, 0, WARN, 'more than 0.05'),
    ({'arrived': 30, 'dropped': 16, 'worked': 14, 'work_ms': 990}, 0, 0, ERROR, 'more than 0.5'),
    ({'arrived': 30, 'dropped': 25, 'worked': 5, 'work_ms': 300}, 0, 5, OK, 'keeping up'),    # as asked for
    ({'arrived': 30, 'dropped': 26, 'worked': 4, 'work_ms': 990}, 0, 5, ERROR, 'overload'),    # 248 ms, not 200
    ({'arrived': 30, 'dropped': 29}, 900, 5, ERROR, 'overload'),    # one frame takes all the time
    ({'arrived': 30, 'failed_frames': 1}, 0, 0, ERROR, 'frames fail'),
])
def test_inference(since, running_ms, max_rate, level, words):
    finding = health.inference(Counter(dropped=7, failed_frames=3), Counter(since), running_ms, max_rate, {'own': 1})
    assert finding.level == level and words in finding.message
    assert (finding.values['own'], finding.values['dropped'], finding.values['failed_frames']) == (1, 7, 3)


@pytest.mark.parametrize('finish, present, foreign, since, level, words', [
    ('offboard', True, '', {'final_refined': 9, 'final_late': 1}, OK, 'is there'),
    ('offboard', False, '', {}, WARN, 'no offboard node'),
    ('offboard', False, 'feed', {}, ERROR, r'another bundle (feed)'),
    ('never', False, '', {}, OK, 'finish is never'),
    ('onboard', False, 'feed', {}, ERROR, 'another bundle'),
    ('offboard', True, '', {'final_refined': 1, 'final_late': 9}, WARN, 'late or lost'),
    ('offboard', True, '', {'refined_refused': 1}, WARN, 'refused'),
])
def test_link(finish, present, foreign, since, level, words):
    total = Counter(final_late=5, refined_late=2, refined=3, forwarded=8)
    finding = health.link(finish, present, foreign, total, Counter(since), {'round_trip_ms': 20.0})
    assert finding.level == level and words in finding.message
    assert finding.values['refined_lost'] == 3 and finding.values['round_trip_ms'] == 20.0


@pytest.mark.parametrize('absent, since, level, words', [
    ([], {}, OK, 'serving'),
    (['b'], {}, WARN, 'no features from b'),
    ([''], {}, WARN, 'the own namespace'),
    (['b'], {'refused.damaged': 1}, WARN, 'refused'),
    ([], {'refused.damaged': 1, 'refused.foreign': 1}, ERROR, 'another bundle'),
])
def test_robots(absent, since, level, words):
    total = Counter({'refused.damaged': 4, 'refused.foreign': 1, 'refined.a': 6, 'refined.': 2})
    finding = health.robots(absent, total, Counter(since), ['a', ''])
    assert finding.level == level and words in finding.message
    assert finding.values == {'robots': 2, 'robots_absent': len(absent), 'refused': 5, 'refused.damaged': 4,
                              'refused.foreign': 1, 'refined.a': 6, 'refined.own': 2}


def test_model():
    bundle = SimpleNamespace(name='street', fingerprint='feed')
    assert health.model(bundle, ['CPU'], ('CPU',)).level == OK
    finding = health.model(bundle, ['CUDA', 'CPU'], ('CPU',))
    assert finding.level == WARN and 'CUDA could not be used: running on CPU' == finding.message


def test_the_whole_is_as_bad_as_its_worst_part():
    parts = [Finding(OK, 'fine', {'a': 1}), Finding(WARN, 'slow', {'b': 2}), Finding(ERROR, 'broken', {'c': 3})]
    assert whole(parts, 'working') == Finding(ERROR, 'broken; slow', {'a': 1, 'b': 2, 'c': 3})
    assert whole(parts[:1], 'working') == Finding(OK, 'working', {'a': 1})
