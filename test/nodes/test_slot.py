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

from owseg_ros.nodes.slot import FrameSlots
from owseg_ros.nodes.slot import Worker
from support.dds import wait_until


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
    slots = FrameSlots(['a', 'b', 'c'], tolerance=0.005)
    slots.put('c', 0, 10.004)
    slots.put('a', 0, 10.0)
    slots.put('b', 0, 10.2)
    assert sorted(names(slots.take())) == ['a', 'c']
    assert names(slots.take()) == ['b']


def test_the_partner_of_a_synchronised_camera_is_waited_for():
    slots = FrameSlots(['a', 'b'], tolerance=0.005, batch_wait=60.0)
    slots.put('a', 0, 1.0)
    slots.put('b', 0, 1.001)
    assert sorted(names(slots.take())) == ['a', 'b']
    slots.put('a', 1, 2.0)
    late = threading.Timer(0.05, slots.put, ('b', 1, 2.001))
    late.start()
    assert sorted(names(slots.take())) == ['a', 'b']
    late.join()


def test_a_partner_that_stops_is_waited_for_once_at_most():
    slots = FrameSlots(['a', 'b'], tolerance=0.005, batch_wait=0.01)
    slots.put('a', 0, 1.0)
    slots.put('b', 0, 1.0)
    slots.take()
    slots.put('a', 1, 2.0)
    assert names(slots.take()) == ['a']
    slots.batch_wait = 60.0
    slots.put('a', 2, 3.0)
    assert names(slots.take()) == ['a']


def test_the_worker_processes_and_stops():
    slots, seen = FrameSlots(['']), []
    worker = Worker(slots, lambda batch: seen.append(batch[0].message))
    worker.start()
    for number in range(5):
        slots.put('', number, float(number))
        wait_until(lambda: seen and seen[-1] == number)
    assert worker.stop()
    slots.put('', 'too late', 9.0)
    assert 'too late' not in seen


def test_stopping_waits_for_the_batch_in_progress():
    slots, release, done = FrameSlots(['']), threading.Event(), []
    worker = Worker(slots, lambda batch: (release.wait(20.0), done.append(batch)))
    worker.start()
    slots.put('', 0, 0.0)
    threading.Timer(0.05, release.set).start()
    assert worker.stop()
    assert len(done) == 1
