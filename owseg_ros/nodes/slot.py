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
"""The newest frame of each camera, and the thread that works on them."""

from __future__ import annotations

from dataclasses import dataclass
import threading
import time
from typing import Any, Callable, Sequence


@dataclass(frozen=True)
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
    frames of the other cameras that carry the same stamp, so that synchronised cameras share a
    batch and the others take turns. Frames of synchronised cameras come a few milliseconds
    apart: when the previous frames of two cameras agreed, `take` waits up to `batch_wait`
    seconds for the partner.

    :param cameras: names of the cameras.
    :param tolerance: stamps that differ by no more than this many seconds agree.
    :param batch_wait: longest time to wait for the frame of a synchronised camera, in seconds.
    """

    def __init__(self, cameras: Sequence[str], tolerance: float = 0.005,
                 batch_wait: float = 0.01) -> None:
        self.tolerance = tolerance
        self.batch_wait = batch_wait
        self._changed = threading.Condition()
        self._pending: dict[str, Pending] = {}
        self._order = list(cameras)
        self._stamps: dict[str, float] = {}
        self._partners: dict[str, frozenset[str]] = dict.fromkeys(cameras, frozenset())
        self._closed = False

    def put(self, camera: str, message: Any, stamp: float) -> bool:
        """Store a frame; return False when it replaced one that was never taken (a drop)."""
        with self._changed:
            last = self._stamps.get(camera)
            self._partners[camera] = frozenset() if last is None else frozenset(
                other for other, other_stamp in self._stamps.items()
                if other != camera and abs(other_stamp - last) <= self.tolerance)
            self._stamps[camera] = stamp
            fresh = camera not in self._pending
            self._pending[camera] = Pending(camera, message, stamp, time.monotonic())
            self._changed.notify_all()
            return fresh

    def take(self) -> list[Pending]:
        """Wait for frames and return those of one batch; an empty list once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            if self._closed:
                return []
            first = next(camera for camera in self._order if camera in self._pending)
            deadline = self._pending[first].received + self.batch_wait
            self._changed.wait_for(
                lambda: self._closed or self._partners[first] <= self._pending.keys(),
                max(0.0, deadline - time.monotonic()))
            if self._closed:
                return []
            stamp = self._pending[first].stamp
            batch = [self._pending[first]] + [
                frame for camera, frame in self._pending.items()
                if camera != first and abs(frame.stamp - stamp) <= self.tolerance]
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


class Worker:
    """
    The one thread that takes batches out of the slots and processes them.

    :param slots: where the frames wait.
    :param process: called with each batch; it must handle its own errors.
    :param name: name of the thread.
    """

    def __init__(self, slots: FrameSlots, process: Callable[[list[Pending]], None],
                 name: str = 'perception') -> None:
        self._slots = slots
        self._process = process
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """Let the current batch finish and end the thread; False when it did not end in time."""
        self._slots.close()
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._slots.take():
            self._process(batch)
