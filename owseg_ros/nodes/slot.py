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
"""The newest frame of each camera, and which of them are next."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
import statistics
import threading
import time
from typing import Any, Sequence

_PERIODS = 5
"""Intervals that the period of a camera is the median of."""

_OLD = 0.5
"""Share of a period after which a frame that waits is old: see docs/pipeline.md for others."""

_LATE = 1.1
"""Periods after which the next frame is late."""


@dataclass(frozen=True, eq=False)
class Pending:
    """A frame that waits: its camera, the message, its stamp and when it came (seconds)."""

    camera: str
    message: Any
    stamp: float
    received: float


class FrameSlots:
    """
    One slot per camera that holds the newest frame; a frame not taken in time is dropped.

    `take` hands out the frame of the camera that was served longest ago, together with the
    frames of the other cameras that are of the same moment, so that synchronised cameras share a
    batch and the others take turns. Frames of synchronised cameras come a few milliseconds
    apart: a camera whose last frame was of the same moment as that of another is expected to
    send its next one too, and `take` waits up to `batch_wait` seconds for it. A camera that
    stops is so waited for once.

    A frame that has waited for more than half the period of its camera is nearly as old as the
    next one will be new: with `prefer_fresh` that one is waited for, unless another camera has
    a frame. It costs at most half a period, and less than the age that it saves.

    :param cameras: names of the cameras.
    :param max_skew: stamps that differ by no more than this many seconds are of one moment.
    :param batch_wait: longest time to wait for the frame of a synchronised camera, in seconds.
    :param max_batch: most frames of one batch; 0 for any number.
    :param prefer_fresh: whether to wait for the next frame rather than take an old one.
    """

    def __init__(self, cameras: Sequence[str], max_skew: float = 0.005,
                 batch_wait: float = 0.01, max_batch: int = 0,
                 prefer_fresh: bool = False) -> None:
        self.max_skew = max_skew
        self.batch_wait = batch_wait
        self.max_batch = max_batch or len(cameras)
        self.prefer_fresh = prefer_fresh
        self._changed = threading.Condition()
        self._pending: dict[str, Pending] = {}
        self._order = list(cameras)
        self._stamps: dict[str, float] = {}
        self._expected: dict[str, frozenset[str]] = dict.fromkeys(cameras, frozenset())
        self._arrivals: dict[str, deque[float]] = {
            camera: deque(maxlen=_PERIODS + 1) for camera in cameras}
        self._closed = False

    def put(self, camera: str, message: Any, stamp: float) -> bool:
        """Store a frame; return False when it replaced one that was never taken (a drop)."""
        with self._changed:
            last = self._stamps.get(camera)
            # Where the newest frame of another camera is of the moment of the last one of this,
            # its frame of this moment is yet to come.
            self._expected[camera] = frozenset() if last is None else frozenset(
                other for other, other_stamp in self._stamps.items()
                if other != camera and self._together(other_stamp, last))
            self._stamps[camera] = stamp
            fresh = camera not in self._pending
            now = time.monotonic()
            self._arrivals[camera].append(now)
            self._pending[camera] = Pending(camera, message, stamp, now)
            self._changed.notify_all()
            return fresh

    def take(self) -> list[Pending]:
        """Wait for frames and return those of one batch; an empty list once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            if self._closed:
                return []
            first = next(camera for camera in self._order if camera in self._pending)
            if self.prefer_fresh:
                self._await_fresh(first)
            if self.max_batch > 1 and not self._closed:
                self._await_others(first)
            if self._closed:
                return []
            stamp = self._pending[first].stamp
            others = [self._pending[camera] for camera in self._order
                      if camera != first and camera in self._pending
                      and self._together(self._pending[camera].stamp, stamp)]
            batch = [self._pending[first], *others[:self.max_batch - 1]]
            for frame in batch:
                del self._pending[frame.camera]
                self._order.remove(frame.camera)
                self._order.append(frame.camera)
            return batch

    def close(self) -> None:
        """Drop what waits and let `take` return."""
        with self._changed:
            self._closed = True
            self._pending.clear()
            self._changed.notify_all()

    def _together(self, stamp: float, other: float) -> bool:
        return abs(stamp - other) <= self.max_skew

    def _await_fresh(self, camera: str) -> None:
        """Wait for the next frame of a camera where it will come sooner than the last came."""
        frame, arrivals = self._pending[camera], list(self._arrivals[camera])
        if len(arrivals) <= _PERIODS:
            return
        period = statistics.median(
            after - before for before, after in zip(arrivals, arrivals[1:]))
        now = time.monotonic()
        if _OLD * period <= now - frame.received < period:
            # A frame that comes late, as the last ones did not, is not waited for without end.
            self._changed.wait_for(
                lambda: self._closed or self._pending[camera] is not frame or any(
                    not self._together(other.stamp, frame.stamp)
                    for other in self._pending.values()),
                frame.received + _LATE * period - now)

    def _await_others(self, first: str) -> None:
        """Wait for the frames that are expected to share a batch with that of a camera."""
        end = time.monotonic() + self.batch_wait
        while not self._closed:
            left = min(end, self._due(first)) - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _due(self, first: str) -> float:
        """Return until when a frame is expected that shares a batch with that of a camera."""
        moments = [0.0]
        for camera, frame in self._pending.items():
            for other in self._expected[camera]:
                if first in (camera, other) and (other not in self._pending or not self._together(
                        self._pending[other].stamp, frame.stamp)):
                    moments.append(frame.received + self.batch_wait)
        return max(moments)
