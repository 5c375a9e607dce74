# Copyright 2026 owseg_ros contributors
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
"""The newest-frame slots and their worker."""

import threading
import time

from owseg_ros.nodes.slot import FrameSlots
import pytest


def names(batch):
    """Return the cameras of a batch."""
    return [pending.camera for pending in batch]


def test_the_newest_frame_replaces_the_one_that_waits():
    slots = FrameSlots([''])
    assert slots.put('', 'old', 1.0)
    assert not slots.put('', 'new', 2.0)
    assert [pending.message for pending in slots.take()] == ['new']
    assert slots.put('', 'next', 3.0)


def test_cameras_take_turns():
    slots = FrameSlots(['a', 'b', 'c'])
    served = []
    for step in range(6):
        for offset, camera in enumerate('abc'):
            slots.put(camera, step, step + 0.1 * offset)
        served += names(slots.take())
    assert served == ['a', 'b', 'c', 'a', 'b', 'c']


def test_a_camera_that_is_silent_does_not_hold_up_the_others():
    slots = FrameSlots(['a', 'b'], batch_wait=60.0)
    for step in range(3):
        slots.put('b', step, float(step))
        assert names(slots.take()) == ['b']


def test_frames_with_one_stamp_make_a_batch():
    slots = FrameSlots(['a', 'b', 'c'], max_skew=0.005)
    slots.put('c', 0, 10.004)
    slots.put('a', 0, 10.0)
    slots.put('b', 0, 10.2)
    assert sorted(names(slots.take())) == ['a', 'c']
    assert names(slots.take()) == ['b']


def test_the_partner_of_a_synchronised_camera_is_waited_for():
    slots = FrameSlots(['a', 'b'], max_skew=0.005, batch_wait=60.0)
    slots.put('a', 0, 1.0)
    slots.put('b', 0, 1.001)
    assert sorted(names(slots.take())) == ['a', 'b']
    slots.put('a', 1, 2.0)
    late = threading.Timer(0.05, slots.put, ('b', 1, 2.001))
    late.start()
    assert sorted(names(slots.take())) == ['a', 'b']
    late.join()


def test_a_partner_that_stops_is_waited_for_once_at_most():
    slots = FrameSlots(['a', 'b'], max_skew=0.005, batch_wait=0.01)
    slots.put('a', 0, 1.0)
    slots.put('b', 0, 1.0)
    slots.take()
    slots.put('a', 1, 2.0)
    assert names(slots.take()) == ['a']
    slots.batch_wait = 60.0
    slots.put('a', 2, 3.0)
    assert names(slots.take()) == ['a']


def test_the_frame_that_is_due_is_waited_for_although_an_older_one_is_there():
    """Under load cameras in step stay in step: the newest frame of both makes the batch."""
    slots = FrameSlots(['a', 'b'], max_skew=0.005, batch_wait=60.0)
    for stamp in (1.0, 2.0):
        slots.put('a', stamp, stamp)
        slots.put('b', stamp, stamp + 0.001)
    slots.put('a', 3.0, 3.0)
    late = threading.Timer(0.05, slots.put, ('b', 3.0, 3.001))
    late.start()
    assert [(pending.camera, pending.message) for pending in slots.take()] == [
        ('a', 3.0), ('b', 3.0)]
    late.join()


def test_a_frame_that_was_served_alone_is_not_waited_for_again():
    slots = FrameSlots(['a', 'b'], max_skew=0.005, batch_wait=0.01)
    for camera in 'ab':
        slots.put(camera, 0, 1.0)
    slots.take()
    slots.put('a', 1, 2.0)
    assert names(slots.take()) == ['a']
    slots.batch_wait = 60.0
    slots.put('b', 1, 2.0)
    assert names(slots.take()) == ['b']


def test_a_faster_camera_does_not_starve_a_slower_one():
    slots = FrameSlots(['fast', 'slow'], batch_wait=60.0)
    served = []
    for step in range(12):
        slots.put('fast', step, 0.1 * step)
        if step % 3 == 0:
            slots.put('slow', step, 0.1 * step + 0.05)
        served += names(slots.take())
    assert served.count('slow') == 4 and served.count('fast') == 8


def test_a_batch_has_no_more_frames_than_it_may():
    slots = FrameSlots(['a', 'b', 'c'], max_batch=2)
    for step in range(2):
        for camera in 'abc':
            slots.put(camera, step, float(step))
        assert len(slots.take()) == 2
    assert names(slots.take()) == ['b']
    alone = FrameSlots(['a', 'b'], batch_wait=60.0, max_batch=1)
    for step in range(3):
        for camera in 'ab':
            alone.put(camera, step, float(step))
        assert names(alone.take()) == ['ab'[step % 2]]


def feed(slots, count=6, period=0.08):
    """Send frames at a steady rate and take them all."""
    for number in range(count):
        slots.put('', number, float(number))
        slots.take()
        time.sleep(period)


def test_the_next_frame_is_waited_for_where_the_last_is_nearly_as_old_as_a_period():
    slots = FrameSlots([''], prefer_fresh=True)
    feed(slots)
    slots.put('', 'old', 10.0)
    time.sleep(0.06)
    late = threading.Timer(0.02, slots.put, ('', 'fresh', 11.0))
    late.start()
    assert [pending.message for pending in slots.take()] == ['fresh']
    late.join()


def test_a_frame_that_is_fresh_enough_is_taken_at_once():
    slots = FrameSlots([''], prefer_fresh=True)
    feed(slots)
    slots.put('', 'fresh', 10.0)
    start = time.monotonic()
    assert [pending.message for pending in slots.take()] == ['fresh']
    assert time.monotonic() - start < 0.04


def test_a_next_frame_that_does_not_come_is_not_waited_for_without_end():
    slots = FrameSlots([''], prefer_fresh=True)
    feed(slots)
    slots.put('', 'last', 10.0)
    time.sleep(0.06)
    start = time.monotonic()
    assert [pending.message for pending in slots.take()] == ['last']
    assert time.monotonic() - start < 0.3


def test_nothing_fresh_is_waited_for_while_another_camera_has_a_frame():
    slots = FrameSlots(['', 'other'], prefer_fresh=True)
    feed(slots)
    slots.put('', 'old', 10.0)
    time.sleep(0.06)
    slots.put('other', 'new', 20.0)
    start = time.monotonic()
    assert names(slots.take()) == ['other']
    slots.put('other', 'newer', 20.1)
    assert names(slots.take()) == ['']
    assert time.monotonic() - start < 0.02


@pytest.mark.parametrize('batch_wait', [0.0, 60.0])
def test_closing_ends_each_wait(batch_wait):
    slots = FrameSlots(['', 'b'], batch_wait=batch_wait)
    for camera in ('', 'b'):
        slots.put(camera, 0, 0.0)
    slots.take()
    slots.put('', 1, 1.0)
    end = threading.Timer(0.05, slots.close)
    end.start()
    if not batch_wait:
        assert names(slots.take()) == ['']
    assert slots.take() == []
    end.join()
