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
"""Counting frames, and telling /diagnostics what that means."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
import math
import threading
import time
from typing import Any, Callable, Mapping, Sequence

from diagnostic_msgs.msg import DiagnosticArray
from diagnostic_msgs.msg import DiagnosticStatus
from diagnostic_msgs.msg import KeyValue
import numpy as np
from owseg_ros.engine.status import BUILDING
from owseg_ros.engine.status import EngineStatus
from owseg_ros.engine.status import FALLBACK
from owseg_ros.engine.status import RUNNING
from owseg_ros.readout.choice import ChosenReadout
from owseg_ros.readout.choice import GPU
from rclpy.node import Node

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

WINDOW_FRAMES = 600
"""Frames that the percentiles of diagnostics look back on."""

RATE_SECONDS = 5.0
"""Seconds that the rates of diagnostics look back on."""

SAME_STAMPS = 5
"""Frames in a row with one stamp that are no accident."""

SLOW_READOUT_MS = 1000.0
"""Maps that take longer are worth a word: the picture is far larger than the network's input."""

EARLIEST_SECONDS = 0.2
"""Seconds that lie between two reports, however much happens (or the period, if shorter)."""

NO_FRAMES = 'no frames'
"""The state of a camera that is silent."""

SLOW = 'slow'
"""The state of a camera whose frames have had no answer for a while."""

PLAUSIBLE_AGE = (-0.1, 60.0)
"""Ages (seconds) outside mean that stamps and node clock do not belong together."""


@dataclass(frozen=True)
class Snapshot:
    """
    The numbers of one camera at one moment.

    Counts are since activation; `batched` are the frames out that shared their pass of the
    network with those of other cameras. Percentiles are NaN without frames, and those of the
    age also when stamps and node clock do not belong together (a bag replayed without
    use_sim_time); `clock_offset` is then their difference in seconds. `silent` is the number of
    seconds since the last frame or activation, `since_bad` since the last bad frame (infinite:
    never), `since_back` since the last frame that was older than the one before. `same_stamps`
    frames in a row have had `stamp`, seconds, which is that of the last frame. `unanswered` is the
    number of seconds that frames have come in without a result, or a reason why there is none.
    `size`, width and height, is that of the last frame that could be read. `slow` is the size of
    the last frame whose maps took more than SLOW_READOUT_MS, and what they took (milliseconds);
    `since_slow` the number of seconds since then.
    """

    frames_in: int
    frames_out: int
    drops: int
    skipped: int
    batched: int
    bad_frames: int
    last_error: str
    rate_in_hz: float
    rate_hz: float
    age_ms: tuple[float, float, float]
    latency_ms: tuple[float, float, float]
    network_ms: float
    readout_ms: float
    clock_offset: float | None
    silent: float
    since_bad: float
    since_good: float
    stamp: float | None
    same_stamps: int
    stamps_back: int
    since_back: float
    unanswered: float
    size: tuple[int, int] | None
    slow: tuple[tuple[int, int], float] | None
    since_slow: float

    def values(self) -> dict[str, str]:
        """Return the numbers as the key-value pairs of a diagnostic status."""
        return {
            'frames_in': str(self.frames_in),
            'frames_out': str(self.frames_out),
            'drops': str(self.drops),
            'skipped': str(self.skipped),
            'batched': str(self.batched),
            'bad_frames': str(self.bad_frames),
            'stamps_back': str(self.stamps_back),
            'last_error': self.last_error,
            'frame_size': f'{self.size[0]}x{self.size[1]}' if self.size else '',
            'rate_in_hz': f'{self.rate_in_hz:.2f}',
            'rate_hz': f'{self.rate_hz:.2f}',
            'age_ms_p50': _milliseconds(self.age_ms[0]),
            'age_ms_p95': _milliseconds(self.age_ms[1]),
            'age_ms_p99': _milliseconds(self.age_ms[2]),
            'latency_ms_p50': _milliseconds(self.latency_ms[0]),
            'latency_ms_p95': _milliseconds(self.latency_ms[1]),
            'latency_ms_p99': _milliseconds(self.latency_ms[2]),
            'network_ms': _milliseconds(self.network_ms),
            'readout_ms': _milliseconds(self.readout_ms),
        }


class FrameStatistics:
    """
    What happened to the frames of one camera; safe to use from several threads.

    :param monotonic: the clock behind rates and silence, in seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now = monotonic
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start to count again, as on activation."""
        with self._lock:
            self._start = self._now()
            self._frames_in = self._frames_out = 0
            self._drops = self._skipped = self._batched = self._bad = 0
            self._last_error = ''
            self._last_in = self._last_bad = self._last_good = self._last_back = -math.inf
            self._last_slow = -math.inf
            self._slow: tuple[tuple[int, int], float] | None = None
            self._stamp: float | None = None
            self._same_stamps = self._stamps_back = 0
            self._arrivals: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._departures: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._ages: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._latencies: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._network: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._readout: deque[float] = deque(maxlen=WINDOW_FRAMES)
            self._clock_offset: float | None = None
            self._unanswered_since: float | None = None
            self._size: tuple[int, int] | None = None

    def frame_in(self, dropped: bool, stamp: float) -> None:
        """
        Count a frame that came in.

        :param dropped: it replaced one that nobody had looked at.
        :param stamp: of the frame, in seconds.
        """
        with self._lock:
            self._frames_in += 1
            self._drops += dropped
            self._last_in = self._now()
            if self._stamp is not None and stamp < self._stamp:
                self._stamps_back += 1
                self._last_back = self._last_in
            self._same_stamps = self._same_stamps + 1 if stamp == self._stamp else 1
            self._stamp = stamp
            self._arrivals.append(self._last_in)
            if self._unanswered_since is None:
                self._unanswered_since = self._last_in

    def frame_read(self, width: int, height: int) -> None:
        """Take note of the size of a frame that goes to the network, in pixels."""
        with self._lock:
            self._size = width, height

    def skip(self) -> None:
        """Count a frame that nobody wanted to see."""
        with self._lock:
            self._skipped += 1
            self._last_good = self._now()
            self._unanswered_since = None

    def bad_frame(self, error: str) -> None:
        """Count a frame that could not be processed."""
        with self._lock:
            self._bad += 1
            self._last_error = error
            self._last_bad = self._now()
            self._unanswered_since = None

    def frame_out(self, age: float, latency: float, network_ms: float, readout_ms: float,
                  batched: bool = False, size: tuple[int, int] | None = None) -> None:
        """
        Count a frame whose results were published.

        :param age: node clock minus stamp, in seconds.
        :param latency: seconds since the frame was received.
        :param batched: whether frames of other cameras were in the same pass of the network.
        :param size: width and height of the frame in pixels.
        """
        with self._lock:
            self._frames_out += 1
            self._batched += batched
            self._last_good = self._now()
            self._unanswered_since = None
            self._departures.append(self._last_good)
            self._latencies.append(1e3 * latency)
            self._network.append(network_ms)
            self._readout.append(readout_ms)
            if size is not None and readout_ms > SLOW_READOUT_MS:
                self._slow, self._last_slow = (size, readout_ms), self._last_good
            if PLAUSIBLE_AGE[0] <= age <= PLAUSIBLE_AGE[1]:
                self._ages.append(1e3 * age)
                self._clock_offset = None
            else:
                self._ages.clear()
                self._clock_offset = age

    def snapshot(self) -> Snapshot:
        """Return the numbers of this moment."""
        with self._lock:
            now = self._now()
            return Snapshot(
                frames_in=self._frames_in, frames_out=self._frames_out, drops=self._drops,
                skipped=self._skipped, batched=self._batched, bad_frames=self._bad,
                last_error=self._last_error, rate_in_hz=_rate(self._arrivals, now),
                rate_hz=_rate(self._departures, now),
                age_ms=_percentiles(self._ages), latency_ms=_percentiles(self._latencies),
                network_ms=_percentiles(self._network)[0],
                readout_ms=_percentiles(self._readout)[0],
                clock_offset=self._clock_offset,
                silent=now - max(self._start, self._last_in),
                since_bad=now - self._last_bad, since_good=now - self._last_good,
                stamp=self._stamp, same_stamps=self._same_stamps,
                stamps_back=self._stamps_back, since_back=now - self._last_back,
                unanswered=(0.0 if self._unanswered_since is None
                            else now - self._unanswered_since),
                size=self._size, slow=self._slow, since_slow=now - self._last_slow)


def judge_camera(
    numbers: Snapshot, *, topic: str, publishers: int, timeout: float, idle: bool,
    incompatible: str, transport: str, elsewhere: Callable[[], str] = lambda: '',
    smaller: str = '',
) -> tuple[bytes, str, str]:
    """
    Return level, state and message of an active camera.

    :param topic: the topic that the frames come on.
    :param publishers: matched publishers of it.
    :param timeout: seconds without a frame that are too many.
    :param idle: nobody subscribes to a result.
    :param incompatible: why a publisher does not match, or an empty string.
    :param transport: what to know about the transport when nothing arrives.
    :param elsewhere: asked for where images are published when nobody publishes the topic; it
        returns '' where they are not.
    :param smaller: what to do for smaller maps; '' where they are as small as can be.
    """
    if numbers.silent > timeout:
        for_long = f'no frame for {numbers.silent:.1f} s'
        if incompatible:
            return WARN, NO_FRAMES, f'{for_long}: {incompatible}'
        if not publishers:
            hint = elsewhere()
            return WARN, NO_FRAMES, (
                f'{for_long}: nobody publishes {topic}{hint and f"; {hint}"}')
        if numbers.frames_in:
            return WARN, NO_FRAMES, f'{for_long}: the publisher of {topic} went silent'
        return WARN, NO_FRAMES, (
            f'{for_long}: {topic} has a publisher, but nothing arrives. {transport}')
    if numbers.unanswered > max(timeout, RATE_SECONDS):
        size = '' if numbers.size is None else f' of {numbers.size[0]}x{numbers.size[1]}'
        return WARN, SLOW, (
            f'frames{size} come on {topic}, but none has been answered for '
            f'{numbers.unanswered:.1f} s{smaller and f"; if they are large, {smaller}"}')
    if numbers.since_bad < max(timeout, RATE_SECONDS):
        level = ERROR if numbers.since_good > numbers.since_bad else WARN
        return level, 'bad frames', (
            f'{numbers.bad_frames} since it is active, the last: {numbers.last_error}')
    doubts = _doubts(numbers, topic, publishers, timeout, smaller)
    if idle:
        state, message = 'idle', 'nobody subscribes to a result'
    else:
        state, message = 'running', _running(numbers)
    return WARN if doubts else OK, state, '; '.join([message, *doubts])


def _doubts(numbers: Snapshot, topic: str, publishers: int, timeout: float,
            smaller: str) -> list[str]:
    """Return what is strange about frames that can be processed, and what to do about it."""
    doubts = []
    if publishers > 1:
        doubts.append(f'{topic} has {publishers} publishers, whose frames mix: end all but one')
    if numbers.same_stamps >= SAME_STAMPS and numbers.stamp == 0.0:
        doubts.append(f'frames on {topic} have no stamp: let the driver set it to the time of '
                      'exposure, or a simulation publish /clock')
    elif numbers.same_stamps >= SAME_STAMPS:
        doubts.append(f'the last {numbers.same_stamps} frames on {topic} have one stamp: the '
                      'driver shows an old image, or does not stamp new ones')
    elif numbers.since_back < max(timeout, RATE_SECONDS):
        doubts.append(f'stamps on {topic} went back ({numbers.stamps_back} times): a bag that '
                      'starts again, a clock that was set, or a second publisher')
    if smaller and numbers.slow and numbers.since_slow < max(timeout, RATE_SECONDS):
        (width, height), readout_ms = numbers.slow
        doubts.append(f'maps of {width}x{height} took {1e-3 * readout_ms:.1f} s: {smaller}')
    return doubts


def _running(numbers: Snapshot) -> str:
    """Return what to say about a camera whose frames are answered."""
    if not numbers.frames_out:
        return 'waiting for the first frame'
    if numbers.clock_offset is not None:
        cause = ('a bag without use_sim_time?' if numbers.clock_offset > 0
                 else 'use_sim_time without a /clock?')
        return (
            f'{numbers.rate_hz:.1f} Hz; stamps are {numbers.clock_offset:.0f} s off the node '
            f'clock ({cause}), so that there is no age')
    return (
        f'{numbers.rate_hz:.1f} Hz, age {numbers.age_ms[0]:.0f} ms '
        f'(p95 {numbers.age_ms[1]:.0f} ms), {numbers.drops} drops')


def judge_engine(found: EngineStatus,
                 readout: ChosenReadout) -> tuple[bytes, str, dict[str, str]]:
    """
    Return level, what to add to the message, and the values of the engine of a loaded model.

    An engine that another stands in for for good is a warning, and so is a readout that was asked
    for and is not to be had: frames are answered, but slower than was asked for.
    """
    values = {'engine_state': found.state, 'engine_reason': found.reason,
              'engine_notes': '; '.join(found.notes), 'readout': readout.description,
              'readout_note': readout.note}
    if found.state == BUILDING:
        values.update(engine_build_percent=f'{100 * found.share:.0f}',
                      engine_build_step=found.step)
    told = '' if found.state == RUNNING else f' ({found})'
    lacking = bool(readout.note) and readout.choice == GPU
    if lacking:
        told += f' (readout on the CPU: {readout.note})'
    return WARN if found.state == FALLBACK or lacking else OK, told, values


def status(name: str, level: bytes, message: str, values: Mapping[str, Any]) -> DiagnosticStatus:
    """Return a diagnostic status of this package with its key-value pairs."""
    return DiagnosticStatus(
        level=level, name=name, message=message, hardware_id='owseg_ros',
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])


class Reporter:
    """
    Publishes diagnostics at a period, from a thread of its own.

    A thread, not a timer: the executor is busy while a model is loaded, and that is when
    somebody wants to know what the node is doing; and the clock of a paused bag stops timers.

    :param node: the node that publishes.
    :param collect: returns the statuses to publish.
    :param period: returns the seconds to the next report.
    """

    def __init__(self, node: Node, collect: Callable[[], Sequence[DiagnosticStatus]],
                 period: Callable[[], float]) -> None:
        self._node = node
        self._collect = collect
        self._period = period
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._publishing = threading.Lock()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name='diagnostics', daemon=True)

    def start(self) -> None:
        """Start to report."""
        self._thread.start()

    def report(self) -> None:
        """Publish now; does nothing once the context is shut down."""
        with self._publishing:
            if self._stopped.is_set() or not self._node.context.ok():
                return
            try:
                message = DiagnosticArray(status=list(self._collect()))
                message.header.stamp = self._node.get_clock().now().to_msg()
                self._publisher.publish(message)
            except Exception as error:
                # A signal may shut the context down at any moment; all else must be seen.
                if self._node.context.ok():
                    self._node.get_logger().error(
                        f'diagnostics not published: {error!r}', throttle_duration_sec=5.0)

    def hasten(self) -> None:
        """Report soon, from the thread of the reporter."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; the last report has been published before this returns."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            self.report()
            begun, period = time.monotonic(), self._period()
            self._wake.wait(period)
            # What happens at each frame is not reported at each.
            self._stopped.wait(begun + min(EARLIEST_SECONDS, period) - time.monotonic())


def _milliseconds(value: float) -> str:
    return '' if math.isnan(value) else f'{value:.2f}'


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return math.nan, math.nan, math.nan
    p50, p95, p99 = np.percentile(np.fromiter(values, np.float64, len(values)), (50, 95, 99))
    return float(p50), float(p95), float(p99)


def _rate(times: Sequence[float], now: float) -> float:
    recent = [moment for moment in times if now - moment <= RATE_SECONDS]
    if len(recent) < 2 or recent[-1] <= recent[0]:
        return 0.0
    return (len(recent) - 1) / (recent[-1] - recent[0])
