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
"""Several cameras with one network, and the two threads that frames go through."""

import itertools
import threading
import time

from diagnostic_msgs.msg import DiagnosticArray
from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
from owseg_ros.engine.contract import EngineError
from owseg_ros.frame import image_to_array
from owseg_ros.nodes.perception import PerceptionNode
import pytest
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from support.dds import ImagePublisher
from support.dds import RELIABLE
from support.dds import Repeater
from support.dds import stamp_of
from support.dds import wait_until
from support.tiny_bundle import CLASS_NAMES
from support.tiny_bundle import paint

pytestmark = pytest.mark.timeout(60)

COLORS = {'front': (255, 0, 0), 'left': (0, 255, 0), 'right': (0, 0, 255)}


class Cameras:
    """A perception node with several cameras, and what comes out of each."""

    def __init__(self, ros, model, names, **parameters):
        self.ros = ros
        self.cameras = {
            name: ImagePublisher(ros.client, f'{name}/image', RELIABLE) for name in names}
        self.masks = {name: ros.collect(Image, f'{name}/semantic/mask') for name in names}
        self.node = ros.start(PerceptionNode, {
            'model': str(model.path), 'cameras': list(names), 'autostart': True,
            'diagnostics_period': 0.1, **parameters})
        wait_until(lambda: self.node.phase == 'active', what=lambda: self.node.phase)
        for name in names:
            wait_until(self.cameras[name].matched)
            wait_until(self.masks[name].subscription.get_publisher_count)
        wait_until(lambda: all(
            camera.outputs.wanted() for camera in self.node._cameras.values()))
        self.passes = []
        self.segmenter = self.node._segmenter
        self.run_network, self.each_read_out = (
            self.segmenter.run_network, self.segmenter.each_read_out)
        self.segmenter.run_network = self.run_and_remember

    def run_and_remember(self, frames, maps, *more):
        """Run the network, and note how many frames it saw, from when to when."""
        start = time.monotonic()
        seen = self.run_network(frames, maps, *more)
        self.passes.append((len(frames), start, time.monotonic()))
        return seen

    def send(self, name, stamp=None):
        """Send a frame of the colour of a camera."""
        color = COLORS.get(name, (255, 0, 0))
        self.cameras[name].send(paint(96, 64, color, color), name, stamp)

    def send_all(self):
        """Send a frame of each camera with one stamp."""
        stamp = self.ros.client.get_clock().now().to_msg()
        for name in self.cameras:
            self.send(name, stamp)

    def numbers(self, name):
        """Return the numbers of a camera."""
        return self.node._cameras[name].statistics.snapshot()


@pytest.fixture
def cameras(ros, tiny):
    """Return a function that starts a node with cameras."""
    return lambda *names, model=tiny, **parameters: Cameras(ros, model, names, **parameters)


def test_three_cameras_in_step_share_one_pass(ros, cameras):
    work = cameras('front', 'left', 'right', batch_wait=1.0)
    moments = 7
    for number in range(1, moments + 1):
        # The next three are sent when these are done, so that none is late or dropped.
        work.send_all()
        wait_until(lambda: all(
            work.numbers(name).frames_out == number for name in work.cameras),
            what=lambda: work.passes)
    # A first frame may come when the network has begun with that of another camera.  From then on
    # the cameras know each other.
    counts = [count for count, *_ in work.passes]
    assert counts[1 - moments:] == [3] * (moments - 1) and sum(counts) == 3 * moments, counts
    for name, color in zip(work.cameras, CLASS_NAMES):
        masks = work.masks[name]
        mask = masks.first(lambda mask: stamp_of(mask) == work.cameras[name].sent[-1])
        assert mask.header.frame_id == name
        assert (image_to_array(mask) == CLASS_NAMES.index(color)).all()
        assert work.numbers(name).drops == 0 and work.numbers(name).batched >= moments - 1
    assert len({tuple(camera.sent) for camera in work.cameras.values()}) == 1


def test_a_batch_is_no_larger_than_it_may_be(ros, cameras):
    work = cameras('front', 'left', max_batch=1)
    with Repeater(work.send_all, 10.0):
        wait_until(lambda: all(len(masks.messages) >= 3 for masks in work.masks.values()))
    assert {count for count, *_ in work.passes} == {1}
    assert work.numbers('front').batched == 0


def test_cameras_out_of_step_take_turns(ros, cameras, slow):
    """Both send faster than the network runs, and not at one moment."""
    work = cameras('front', 'left', model=slow)
    rate = min(60.0, 2e3 / work.node._warm_up_ms)
    turn, begin = itertools.count(), ros.client.get_clock().now()

    def send():
        number = next(turn)
        stamp = begin + Duration(nanoseconds=int(5e8 * number / rate))
        work.send(('front', 'left')[number % 2], stamp.to_msg())

    with Repeater(send, 2 * rate):
        wait_until(lambda: len(work.passes) >= 16)
    assert {count for count, *_ in work.passes} == {1}
    front, left = work.numbers('front'), work.numbers('left')
    assert abs(front.frames_out - left.frames_out) <= 4
    assert front.drops > 0 and left.drops > 0
    assert front.age_ms[0] > 0 and left.age_ms[0] > 0 and front.batched == left.batched == 0


def test_a_faster_camera_does_not_starve_a_slower_one(ros, cameras, slow):
    work = cameras('front', 'left', model=slow)
    rate = min(100.0, 4e3 / work.node._warm_up_ms)
    with Repeater(lambda: work.send('front'), rate):
        for _ in range(6):
            seen = len(work.masks['left'].messages)
            work.send('left')
            wait_until(lambda: len(work.masks['left'].messages) > seen)
    left, front = work.numbers('left'), work.numbers('front')
    assert left.frames_out == left.frames_in == 6 and left.drops == 0
    assert front.drops > 0 and front.frames_out >= 5
    # It waits for the frame in work and is next: never for a second one.
    assert left.latency_ms[2] < 3.5 * front.network_ms + 100.0


def test_a_camera_that_stops_is_waited_for_once(ros, cameras):
    work = cameras('front', 'left', batch_wait=0.4)
    with Repeater(work.send_all, 5.0):
        wait_until(lambda: [count for count, *_ in work.passes].count(2) >= 3)
    wait_until(lambda: work.numbers('front').frames_out == work.numbers('front').frames_in)
    work.node._cameras['front'].statistics.reset()
    for number in range(1, 7):
        work.send('front')
        wait_until(lambda: work.numbers('front').frames_out >= number)
    latencies = sorted(work.node._cameras['front'].statistics._latencies)
    assert 350.0 < latencies[-1] < 400.0 + 300.0
    assert latencies[-2] < 300.0


def test_one_bad_frame_of_a_batch_leaves_the_others(ros, cameras):
    work = cameras('front', 'left', batch_wait=0.5)

    def send():
        stamp = ros.client.get_clock().now().to_msg()
        bad = Image(width=640, height=480, encoding='rgb8', step=1920)
        bad.header.stamp = stamp
        bad.data.frombytes(b'short')
        work.cameras['front'].send_message(bad)
        work.send('left', stamp)

    with Repeater(send, 10.0):
        wait_until(lambda: work.numbers('left').frames_out >= 4)
        wait_until(lambda: work.numbers('front').bad_frames >= 4)
    assert work.numbers('front').frames_out == work.numbers('left').bad_frames == 0


@pytest.mark.parametrize('mode, overlaps', [
    ('always', True), ('never', False), ('auto', False)])
def test_a_frame_is_read_out_while_the_next_is_in_the_network(ros, cameras, slow, mode, overlaps):
    """On the CPU, where both need the same cores, `auto` is never."""
    work = cameras('front', model=slow, pipeline=mode)
    read = []

    def read_slowly(*arguments):
        start = time.monotonic()
        time.sleep(0.8e-3 * work.node._warm_up_ms)
        read.append((start, time.monotonic()))
        yield from work.each_read_out(*arguments)

    work.segmenter.each_read_out = read_slowly
    with Repeater(lambda: work.send('front'), 60.0):
        wait_until(lambda: len(read) >= 8)
    together = sum(any(start < done and begun < end for _, start, end in work.passes)
                   for begun, done in read[2:])
    assert together >= 4 if overlaps else together == 0
    stamps = work.masks['front'].stamps()
    assert stamps == sorted(stamps) and len(set(stamps)) == len(stamps)
    numbers = work.numbers('front')
    assert numbers.bad_frames == 0
    assert 0 <= numbers.frames_in - numbers.frames_out - numbers.drops <= 4


@pytest.mark.parametrize('mode', ['always', 'never'])
@pytest.mark.parametrize('half', ['run_network', 'each_read_out'])
def test_an_error_in_either_half_is_told_and_the_next_frame_is_fine(ros, cameras, mode, half):
    work = cameras('front', pipeline=mode)
    original = getattr(work.segmenter, half)

    def fail(*arguments):
        raise EngineError('the cable is loose')

    setattr(work.segmenter, half, fail)
    diagnosed = ros.collect(DiagnosticArray, '/diagnostics')
    name = f'{work.node.get_fully_qualified_name()}: camera front'
    with Repeater(lambda: work.send('front'), 20.0):
        status = diagnosed.first(lambda message: any(
            status.name == name and status.level == DiagnosticStatus.ERROR
            and 'the cable is loose' in status.message for status in message.status))
        assert status and work.numbers('front').frames_out == 0
        setattr(work.segmenter, half, original)
        work.masks['front'].first()


@pytest.mark.parametrize('mode', ['always', 'never'])
def test_a_frame_in_work_is_published_before_the_node_is_inactive(ros, cameras, mode):
    work = cameras('front', pipeline=mode)
    entered, go_on = threading.Event(), threading.Event()

    def hold(*arguments):
        entered.set()
        assert go_on.wait(20.0)
        yield from work.each_read_out(*arguments)

    work.segmenter.each_read_out = hold
    work.send('front')
    assert entered.wait(20.0)
    threading.Timer(0.1, go_on.set).start()
    work.node.trigger_deactivate()
    assert work.numbers('front').frames_out == 1
    assert (image_to_array(work.masks['front'].first()) == 0).all()
    assert not {'perception', 'readout'} & {thread.name for thread in threading.enumerate()}


def test_the_pipeline_is_changed_while_frames_come(ros, cameras):
    work = cameras('front')
    with Repeater(lambda: work.send('front'), 100.0):
        for mode in ('always', 'never', 'auto', 'always'):
            seen = len(work.masks['front'].messages)
            assert work.node.set_parameters([Parameter('pipeline', value=mode)])[0].successful
            wait_until(lambda: len(work.masks['front'].messages) > seen + 5)
    assert work.numbers('front').bad_frames == 0
    assert np.all(np.diff([1e9 * sec + nanosec for sec, nanosec in (
        work.masks['front'].stamps())]) > 0)
