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
"""The two threads that frames go through: one for the network, one for what comes after it."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable

from owseg_ros.nodes.slot import FrameSlots
from owseg_ros.nodes.slot import Pending


class Pipeline:
    """
    Takes batches out of the slots, begins each, and finishes it.

    While a batch is finished in the second thread, the first may begin the next one. It takes
    that out of the slots only when its place behind the batch in work is free, and then as late
    as the times of the last batches allow: so it begins with the newest frames, what is begun is
    never thrown away, and no more than two batches are in memory. Without overlap the first
    thread does both.

    :param slots: where the frames wait.
    :param begin: called with each batch; returns what is to be finished, or None.
    :param finish: called with that, once for each, in the order in which they were begun.
    :param overlap: asked before each batch whether it may be begun while another is finished.

    `begin` and `finish` must handle their own errors.
    """

    def __init__(self, slots: FrameSlots, begin: Callable[[list[Pending]], Any],
                 finish: Callable[[Any], None],
                 overlap: Callable[[], bool] = lambda: False) -> None:
        self._slots = slots
        self._begin = begin
        self._finish = finish
        self._overlap = overlap
        self._changed = threading.Condition()
        self._waiting: Any = None
        self._busy = self._ended = False
        self._finish_started = self._begin_seconds = self._finish_seconds = 0.0
        self._threads = [
            threading.Thread(target=self._begin_all, name='perception', daemon=True),
            threading.Thread(target=self._finish_all, name='readout', daemon=True)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """Let what was begun be finished and end the threads; False when that took too long."""
        self._slots.close()
        end = time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _begin_all(self) -> None:
        while True:
            overlap = self._overlap()
            self._await_turn(overlap)
            batch = self._slots.take()
            if not batch:
                break
            start = time.monotonic()
            work = self._begin(batch)
            if work is None:
                continue
            self._begin_seconds = time.monotonic() - start
            if overlap:
                with self._changed:
                    self._waiting = work
                    self._changed.notify_all()
            else:
                self._finish(work)
            # Nothing of a batch is held while the next one is waited for.
            del batch, work
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _await_turn(self, overlap: bool) -> None:
        """Wait until the next batch should be taken."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting is None and not (self._busy and not overlap))
            # Begun now, it would wait for the one in work: newer frames may come until then.
            late = self._finish_started + self._finish_seconds - self._begin_seconds
            self._changed.wait_for(
                lambda: not self._busy, max(0.0, late - time.monotonic()))

    def _finish_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._ended)
                work, self._waiting = self._waiting, None
                if work is None:
                    return
                self._busy = True
                self._finish_started = time.monotonic()
                self._changed.notify_all()
            self._finish(work)
            del work
            with self._changed:
                self._busy = False
                self._finish_seconds = time.monotonic() - self._finish_started
                self._changed.notify_all()
