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
"""The hand-over to the worker: the newest item, robots in turn, a greatest rate."""
import threading
import time

from ee_seg_ros.nodes.worker import Pace, Parking


def test_the_newest_item_is_taken_and_the_others_are_counted():
    parking = Parking()
    for item in 'abc':
        parking.put(item)
    assert parking.take() == ('', 'c', 2) and parking.dropped == 2
    parking.put('d')
    assert parking.take() == ('', 'd', 0) and parking.dropped == 2


def test_robots_are_served_in_turn():
    parking = Parking()
    order = []
    for _ in range(6):
        for robot in 'xyz':    # all three have something to do all the time
            parking.put(0, robot)
        order.append(parking.take()[0])
    assert sorted(order[:3]) == sorted(order[3:]) == ['x', 'y', 'z']


def test_a_waiting_worker_is_woken_by_an_item_and_by_the_end():
    parking, taken = Parking(), []
    thread = threading.Thread(target=lambda: taken.extend([parking.take(), parking.take()]))
    thread.start()
    parking.put('item')
    while not taken and parking._items:
        time.sleep(0.001)
    parking.close()
    thread.join(30)
    assert taken == [('', 'item', 0), None]


def test_nothing_is_taken_too_early():
    parking = Parking()
    parking.put('item')
    due = time.monotonic() + 0.05
    parking.take(not_before=due)
    assert time.monotonic() >= due


def test_pace_holds_the_rate_and_makes_up_for_one_late_frame(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    pace, starts = Pace(), []
    for delay in (0.0, 0.0, 0.0, 0.15, 0.0, 0.0):    # seconds that each frame comes later than it could
        now = max(now, pace.next_start(10.0)) + delay
        pace.started(10.0)
        starts.append(round(now - 100.0, 3))
    assert starts == [0.0, 0.0, 0.1, 0.35, 0.35, 0.45]
    assert pace.next_start(0.0) == 0.0
