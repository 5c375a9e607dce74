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

from owseg_ros.nodes.pipeline import Pipeline
from owseg_ros.nodes.slot import FrameSlots
import pytest
from support.dds import wait_until

pytestmark = pytest.mark.timeout(60)


class Stages:
    """A pipeline whose two halves note what they do and hold on where a test wants that."""

    def __init__(self, overlap):
        self.begun, self.done = [], []
        self.may_begin, self.may_finish = threading.Event(), threading.Event()
        self.may_begin.set()
        self.may_finish.set()
        self.slots = FrameSlots([''])
        self.pipeline = Pipeline(self.slots, self.begin, self.finish, lambda: overlap)
        self.pipeline.start()

    def begin(self, batch):
        """Note a frame that is taken; None is not wanted."""
        self.begun.append(batch[0].message)
        assert self.may_begin.wait(20.0)
        return batch[0].message

    def finish(self, message):
        """Note a frame that is finished."""
        assert self.may_finish.wait(20.0)
        self.done.append(message)

    def put(self, message):
        """Send a frame."""
        return self.slots.put('', message, float(message or 0))


@pytest.fixture
def stages():
    """Return a function that makes a pipeline; it is stopped with the test."""
    made = []
    yield lambda overlap: made.append(Stages(overlap)) or made[-1]
    for entry in made:
        entry.may_begin.set()
        entry.may_finish.set()
        assert entry.pipeline.stop()


@pytest.mark.parametrize('overlap', [False, True])
def test_frames_are_finished_in_order_and_once(stages, overlap):
    work = stages(overlap)
    for number in range(50):
        work.put(number)
        wait_until(lambda: work.done and work.done[-1] == number)
    assert work.done == work.begun == list(range(50))


@pytest.mark.parametrize('overlap', [False, True])
def test_what_was_begun_is_finished_and_later_frames_are_not_touched(stages, overlap):
    work = stages(overlap)
    work.may_begin.clear()
    work.put(0)
    wait_until(lambda: work.begun == [0])
    work.put(1)
    threading.Timer(0.05, work.may_begin.set).start()
    assert work.pipeline.stop()
    work.put(2)
    assert work.begun == work.done == [0]


@pytest.mark.parametrize('overlap', [False, True])
def test_an_end_that_takes_too_long_is_told(stages, overlap):
    work = stages(overlap)
    work.may_finish.clear()
    work.put(0)
    wait_until(lambda: work.begun == [0])
    assert not work.pipeline.stop(0.05)


@pytest.mark.parametrize('overlap', [False, True])
def test_a_frame_that_nobody_wants_is_not_finished(stages, overlap):
    work = stages(overlap)
    work.put(None)
    wait_until(lambda: work.begun == [None])
    work.put(1)
    wait_until(lambda: work.done == [1])


def test_the_next_frame_is_begun_while_one_is_finished(stages):
    work = stages(True)
    work.may_finish.clear()
    work.put(0)
    wait_until(lambda: work.begun == [0])
    work.put(1)
    wait_until(lambda: work.begun == [0, 1])
    assert work.done == []


def test_without_overlap_it_is_not(stages):
    work = stages(False)
    work.may_finish.clear()
    work.put(0)
    wait_until(lambda: work.begun == [0])
    work.put(1)
    time.sleep(0.05)
    assert work.begun == [0]
    work.may_finish.set()
    wait_until(lambda: work.done == [0, 1])


def test_a_slow_finish_holds_two_frames_and_the_newest_one_follows(stages):
    """What waits for it stays in the slots, where a newer frame replaces it."""
    work = stages(True)
    work.may_finish.clear()
    for number in range(2):
        work.put(number)
        wait_until(lambda: work.begun[-1:] == [number])
    replaced = [not work.put(number) for number in range(2, 8)]
    time.sleep(0.05)
    assert work.begun == [0, 1] and replaced == [False] + 5 * [True]
    work.may_finish.set()
    wait_until(lambda: work.done == [0, 1, 7])


def test_a_frame_is_begun_late_enough_to_be_fresh_when_it_is_finished(stages):
    """With a finish four times as long as a begin, frames are not begun to lie about."""
    slots, waited = FrameSlots(['']), []

    def begin(batch):
        time.sleep(0.02)
        return time.monotonic()

    def finish(begun):
        waited.append(time.monotonic() - begun)
        time.sleep(0.08)

    pipeline = Pipeline(slots, begin, finish, lambda: True)
    pipeline.start()
    try:
        for number in range(500):
            slots.put('', number, float(number))
            if len(waited) > 8:
                break
            time.sleep(0.005)
    finally:
        assert pipeline.stop()
    # Begun at once, each would wait for 60 ms.
    assert sorted(waited[2:])[len(waited[2:]) // 2] < 0.03
