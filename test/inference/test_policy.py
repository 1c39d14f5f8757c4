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
"""The queue of final masks: order, deadlines, late and refused refinements, streams that start again."""
from ee_seg_ros.inference.policy import FinalQueue


def key(stamp):
    return stamp, 'camera'


def test_settled_frames_leave_at_once():
    queue = FinalQueue()
    queue.add(key(1), 'a', None)
    assert queue.ready(0.0) == [('a', 'onboard', None)]
    assert queue.ready(0.0) == [] and queue.next_deadline() is None


def test_a_settled_frame_waits_for_the_one_before_it():
    queue = FinalQueue()
    queue.add(key(1), 'a', 5.0)
    queue.add(key(2), 'b', None)
    assert queue.ready(1.0) == [] and queue.next_deadline() == 5.0
    assert queue.refine(key(1), 'better')
    assert queue.ready(1.0) == [('a', 'refined', 'better'), ('b', 'onboard', None)]


def test_refinements_out_of_order_leave_in_order():
    queue = FinalQueue()
    for stamp in (1, 2, 3):
        queue.add(key(stamp), stamp, 9.0)
    queue.refine(key(3), 'z')
    queue.refine(key(1), 'x')
    assert queue.ready(0.0) == [(1, 'refined', 'x')]
    queue.refine(key(2), 'y')
    assert queue.ready(0.0) == [(2, 'refined', 'y'), (3, 'refined', 'z')]


def test_deadline_sends_the_onboard_mask_and_later_refinements_are_too_late():
    queue = FinalQueue()
    queue.add(key(1), 'a', 5.0)
    assert queue.ready(4.999) == []
    assert queue.ready(5.0) == [('a', 'late', None)]
    assert not queue.refine(key(1), 'x')


def test_refused_refinement_releases_the_frame():
    queue = FinalQueue()
    queue.add(key(1), 'a', 5.0)
    assert queue.refuse(key(1))
    assert queue.ready(0.0) == [('a', 'refused', None)]


def test_unknown_refinements_change_nothing():
    queue = FinalQueue()
    queue.add(key(1), 'a', 5.0)
    assert not queue.refine((1, 'other camera'), 'x') and not queue.refine(key(2), 'x') and not queue.refuse(key(7))
    assert queue.ready(0.0) == []


def test_a_stamp_that_goes_back_releases_all_pending_frames():
    queue = FinalQueue()
    for stamp in (10, 11):
        assert not queue.restart_if_backwards(key(stamp))
        queue.add(key(stamp), stamp, 99.0)
    assert queue.restart_if_backwards(key(3))
    queue.add(key(3), 3, 99.0)
    assert [frame for frame, _, _ in queue.ready(0.0)] == [10, 11]
    assert not queue.refine(key(10), 'x') and queue.refine(key(3), 'y')
    assert queue.ready(0.0) == [(3, 'refined', 'y')]


def test_a_stamp_in_flight_is_not_forwarded_twice_and_said_once():
    said = []
    queue = FinalQueue(said.append)
    queue.add(key(1), 'a', 5.0)
    assert not queue.may_forward(key(1)) and not queue.may_forward(key(1)) and queue.may_forward(key(2))
    assert len(said) == 1 and 'twice' in said[0]
    queue.add(key(1), 'b', None)
    queue.refine(key(1), 'x')
    assert queue.ready(0.0) == [('a', 'refined', 'x'), ('b', 'onboard', None)]


def test_release_lets_everything_go():
    queue = FinalQueue()
    queue.add(key(1), 'a', 5.0)
    queue.release()
    assert queue.ready(0.0) == [('a', 'late', None)]
