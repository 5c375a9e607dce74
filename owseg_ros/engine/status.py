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
"""What an engine is doing, for people and for /diagnostics."""

from __future__ import annotations

from dataclasses import dataclass, replace
import threading
from typing import Callable

BUILDING, WARMING, RUNNING, FALLBACK = 'building', 'warming', 'running', 'fallback'

# A build may fail at any moment; an engine that failed is not tried again by itself.
_NEXT = {
    BUILDING: frozenset({BUILDING, WARMING, FALLBACK}),
    WARMING: frozenset({WARMING, RUNNING, FALLBACK}),
    RUNNING: frozenset({RUNNING, FALLBACK}),
    FALLBACK: frozenset({FALLBACK}),
}


@dataclass(frozen=True)
class EngineStatus:
    """
    What an engine is doing at one moment.

    state: building, warming, running or fallback; reason: why it is not the engine that was asked
    for, else ''. step: the work in hand while building; share: how much of the build is done,
    0..1, by steps and not by time. notes: what to know that is no failure.
    """

    state: str
    reason: str = ''
    step: str = ''
    share: float = 0.0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.state == FALLBACK:
            return f'fallback: {self.reason}'
        if self.state == BUILDING and self.step:
            return f'building {self.share:.0%}: {self.step}'
        return self.state


class StateMachine:
    """
    The status of an engine that is built, warmed up and run; safe to use from several threads.

    changed: called with the new status on each change of state, in the thread that made it;
    progressed: with the share and the step of a build, in whatever thread.
    """

    def __init__(self, changed: Callable[[EngineStatus], object] = lambda status: None,
                 progressed: Callable[[float, str], object] = lambda share, step: None) -> None:
        self._lock = threading.Lock()
        self._changed = changed
        self._progressed = progressed
        self._status = EngineStatus(BUILDING)

    @property
    def status(self) -> EngineStatus:
        """Return the status of this moment."""
        return self._status

    def enter(self, state: str, reason: str = '') -> None:
        """Go to another state; raise ValueError where there is no way from here."""
        with self._lock:
            before = self._status
            if state not in _NEXT[before.state]:
                raise ValueError(f'no way from {before.state} to {state}')
            self._status = EngineStatus(state, reason, notes=before.notes)
        if state != before.state:
            self._changed(self._status)

    def progress(self, share: float, step: str) -> None:
        """Say how far the build is; does nothing in another state."""
        with self._lock:
            if self._status.state == BUILDING:
                self._status = replace(self._status, share=share, step=step)
        self._progressed(share, step)

    def note(self, text: str) -> None:
        """Add something to know that is no failure."""
        with self._lock:
            self._status = replace(self._status, notes=(*self._status.notes, text))


class BuildProgress:
    """
    Turns nested phases, each of so many steps, into one share of the whole that never falls.

    A step of a phase that has a phase inside of it is done as far as that one is. Phases come and
    go in several threads. report: called with the share (0..1) and the names of the phases in
    work; cancelled: says whether the build is to stop.

    The names and the nesting are those of TensorRT's IProgressMonitor.
    """

    def __init__(self, report: Callable[[float, str], object],
                 cancelled: Callable[[], bool] = lambda: False) -> None:
        self._report = report
        self._cancelled = cancelled
        self._lock = threading.Lock()
        # Name -> [parent, steps, steps done]; in the order in which they started.
        self._phases: dict[str, list] = {}
        self._share = 0.0
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Return whether a step was told that the build is to stop."""
        return self._stopped

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of so many steps, inside of its parent."""
        with self._lock:
            self._phases[name] = [parent, max(1, int(steps)), 0]
            self._tell()

    def step(self, name: str, step: int) -> bool:
        """Finish a step, counted from 0; return whether the build goes on."""
        with self._lock:
            if name in self._phases:
                self._phases[name][2] = int(step) + 1
                self._tell()
        if self._cancelled():
            self._stopped = True
        return not self._stopped

    def finish(self, name: str) -> None:
        """End a phase, all of its steps done or not."""
        with self._lock:
            if name in self._phases:
                phase = self._phases[name]
                phase[2] = phase[1]
                self._tell()
                del self._phases[name]

    def _tell(self) -> None:
        roots = [name for name, (parent, *_) in self._phases.items()
                 if parent not in self._phases]
        # One root after another: only the last is in work.
        share = self._done(roots[-1]) if roots else self._share
        self._share = max(self._share, min(1.0, share))
        self._report(self._share, ' > '.join(self._phases))

    def _done(self, name: str) -> float:
        _, steps, finished = self._phases[name]
        inside = [self._done(child) for child, (parent, *_) in self._phases.items()
                  if parent == name and child != name]
        part = max(inside, default=0.0) if finished < steps else 0.0
        return (finished + part) / steps
