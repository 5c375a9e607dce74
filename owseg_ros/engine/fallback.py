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
"""Serve with one engine while a better one is built, then switch; and back if that one fails."""

from __future__ import annotations

import logging
import threading
from typing import Any, Callable, Optional, Sequence
import weakref

import numpy as np
from owseg_ros.engine.contract import Engine, EngineError, NetworkOutput
from owseg_ros.engine.status import (
    BUILDING, EngineStatus, FALLBACK, RUNNING, StateMachine, WARMING)
from owseg_ros.frame import Frame

_LOG = logging.getLogger(__name__)

# How long the end of a process waits for a build to stop.
_PATIENCE = 20.0


class FallbackEngine:
    """
    An engine that always answers; see engine.contract.Engine.

    name: of the engine that is asked for; serving: answers until that one is ready, and again
    once it has failed.
    build: makes the engine that is asked for, in a thread of its own. It is called with the state
    machine, to report its progress and notes, and with a function that says whether to stop.
    batch: frames for which the built engine is warmed up before it serves.

    The build begins with the object. Whatever goes wrong in it leaves `serving` at work, with the
    reason in `status`. An engine that fails on frames after it was ready is given up in the same
    way, and `serving` answers these very frames. One thread at a time calls `infer`.
    """

    def __init__(self, name: str, serving: Engine,
                 build: Callable[[StateMachine, Callable[[], bool]], Engine],
                 batch: int = 1) -> None:
        self.name = name
        self.input = serving.input
        self._serving = serving
        self._better: Optional[Engine] = None
        self._machine = StateMachine(self._say)
        self._build = build
        self._batch = batch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._prepare, name=f'build {name}', daemon=True)
        self._thread.start()
        # Also where nobody closes it: a process must not end under a library that is building.
        weakref.finalize(self, _end, self._stop, self._thread)

    @property
    def status(self) -> EngineStatus:
        """Return what is known of the engine that is asked for."""
        return self._machine.status

    @property
    def on_gpu(self) -> bool:
        """Return whether the engine that answers now runs on a GPU."""
        return (self._better or self._serving).on_gpu

    @property
    def precision(self) -> str:
        """Return the precision of the engine that answers now."""
        return (self._better or self._serving).precision

    @property
    def description(self) -> str:
        """Return which engine answers now, and in place of which."""
        better = self._better
        if better is not None:
            return better.description
        state = self.status.state
        reason = 'failed' if state == FALLBACK else f'is {state}'
        return f'{self._serving.description}, while {self.name} {reason}'

    def infer(self, frames: Sequence[Frame], *, pixel_features: bool = False,
              text_features: bool = False, region_embeddings: bool = True,
              masks_on_device: bool = False) -> NetworkOutput:
        """Run whichever engine is ready; see engine.contract.Engine."""
        asked = {'pixel_features': pixel_features, 'text_features': text_features,
                 'region_embeddings': region_embeddings, 'masks_on_device': masks_on_device}
        better = self._better
        if better is not None:
            try:
                return better.infer(frames, **asked)
            except EngineError as error:
                # What the other engine refuses too is the fault of the call.
                output = self._serving.infer(frames, **asked)
                self._better = None
                self._machine.enter(FALLBACK, str(error))
                better.close()
                return output
        return self._serving.infer(frames, **asked)

    def run_batch(self, batch: np.ndarray, outputs: Sequence[str]) -> list[Any]:
        """Run whichever engine is ready; its failures are the caller's."""
        return (self._better or self._serving).run_batch(batch, outputs)

    def warm_up(self, batch: int = 1) -> float:
        """Warm up the engine that serves meanwhile; return ms of the last pass."""
        return self._serving.warm_up(batch)

    def wait(self, timeout: Optional[float] = None) -> EngineStatus:
        """Wait until the build has ended, or for so many seconds; return the status."""
        self._thread.join(timeout)
        return self.status

    def close(self) -> None:
        """Stop the build at its next step; what serves goes on until it is let go."""
        self._stop.set()
        if self._better is not None:
            self._better.close()
        self._serving.close()

    def _prepare(self) -> None:
        try:
            engine = self._build(self._machine, self._stop.is_set)
            self._machine.enter(WARMING)
            engine.warm_up(self._batch)
            # Before it may serve: from then on its failures are told by `infer`.
            self._machine.enter(RUNNING)
            self._better = engine
        except EngineError as error:
            self._machine.enter(FALLBACK, str(error))
        except Exception as error:
            _LOG.exception('the build of the engine %s failed', self.name)
            self._machine.enter(FALLBACK, f'{type(error).__name__}: {error}')

    def _say(self, status: EngineStatus) -> None:
        if status.state == FALLBACK and not self._stop.is_set():
            _LOG.warning('%s goes on in place of %s: %s', self._serving.description, self.name,
                         status.reason)
        elif status.state != BUILDING:
            _LOG.info('engine %s: %s', self.name, status)


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join(_PATIENCE)
