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
"""Which readout a frame gets: that of the GPU where its masks are, else that of the CPU."""

from __future__ import annotations

import inspect
import logging
import threading
from typing import Any, Optional

import numpy as np
from owseg_ros.readout.cpu import CpuReadout
from owseg_ros.readout.gpu import GpuReadout, GpuReadoutError, on_gpu
from owseg_ros.readout.maps import ALL_MAPS, Maps
from owseg_ros.readout.readout import Readout

AUTO, CPU, GPU = 'auto', 'cpu', 'gpu'
READOUTS = (AUTO, CPU, GPU)

_LOG = logging.getLogger(__name__)
_CALL = inspect.signature(Readout.__call__)


class ChosenReadout:
    """
    A readout that always answers; called like CpuReadout.

    choice: 'cpu'; 'gpu' for all frames; or 'auto': on the GPU where the masks are there. Then a
    kernel is made in a thread of its own, which takes seconds for each kind of frame (sizes,
    score, maps), while the CPU answers such frames. threads: of the CPU's.

    Where the GPU's cannot run, from the start or at some frame, the CPU's answers that frame and
    all that follow, and `note` says why. One object serves one thread at a time. Raises ValueError
    where the choice is not known.
    """

    def __init__(self, choice: str = AUTO, threads: int = 0) -> None:
        if choice not in READOUTS:
            raise ValueError(f'unknown readout {choice!r}; choose from {", ".join(READOUTS)}')
        self.choice = choice
        self.note = ''
        self._cpu = CpuReadout(threads=threads)
        self._gpu: Optional[GpuReadout] = None
        # The kinds of frames that there is a kernel for.
        self._made: set[tuple] = set()
        self._preparation: Optional[threading.Thread] = None
        if choice == GPU:
            try:
                self._gpu = GpuReadout()
            except GpuReadoutError as error:
                self._give_up(error)

    @property
    def description(self) -> str:
        """Return which one answers now, for people."""
        return self._gpu.description if self._gpu is not None else 'cpu'

    @property
    def masks_on_device(self) -> bool:
        """Return whether the masks had better stay on the GPU."""
        return self.choice != CPU and not self.note

    def __call__(self, mask_logits: Any, probabilities: np.ndarray, *rest: Any,
                 **named: Any) -> Maps:
        """Return the maps of a frame; see readout.Readout."""
        call = mask_logits, probabilities, *rest
        if self.masks_on_device and (self.choice == GPU or on_gpu(mask_logits)):
            given = _CALL.bind(None, *call, **named).arguments
            if self.choice == GPU or _kind(given) in self._made:
                try:
                    return self._gpu(*call, **named)
                except GpuReadoutError as error:
                    self._give_up(error)
            else:
                self._prepare(given)
        return self._cpu(host_array(mask_logits), probabilities, *rest, **named)

    def wait(self, timeout: Optional[float] = None) -> None:
        """Wait until no kernels are being made, or for so many seconds."""
        if self._preparation is not None:
            self._preparation.join(timeout)

    def _prepare(self, given: dict[str, Any]) -> None:
        """Make the kernel of a call in the background; its maps are of no use."""
        if self._preparation is not None and self._preparation.is_alive():
            return
        # The history is the caller's, and regions are looked at on the CPU.
        call = {name: value for name, value in given.items()
                if name not in ('self', 'history', 'score_regions')}
        if given.get('score_regions') is not None:
            call['score_regions'] = lambda mask: ()

        def make() -> None:
            try:
                # Another one, because the first may be at work.
                gpu = GpuReadout()
                gpu(**call)
                self._gpu = self._gpu or gpu
                self._made.add(_kind(given))
            except GpuReadoutError as error:
                self._give_up(error)
            except Exception as error:
                _LOG.exception('the kernels of the readout could not be made')
                self._give_up(error)

        self._preparation = threading.Thread(target=make, name='make kernels', daemon=True)
        self._preparation.start()

    def _give_up(self, error: Exception) -> None:
        self._gpu = None
        self.note = str(error)
        _LOG.warning('the readout runs on the CPU: %s', error)


def _kind(given: dict[str, Any]) -> tuple:
    """Return what the kernel of a call of Readout is compiled for, and a little more."""
    masks, probabilities, settings = (
        given[name] for name in ('mask_logits', 'probabilities', 'settings'))
    queries = given.get('query_weights')
    return (tuple(masks.shape[1:]), masks.dtype, tuple(given['network_size']),
            tuple(given['output_size']), settings.stride, settings.score.name,
            settings.road is None, settings.mark_unknown, frozenset(given.get('maps', ALL_MAPS)),
            given.get('score_regions') is None, probabilities.shape[1],
            0 if queries is None else queries.shape[1])


def host_array(array: Any) -> np.ndarray:
    """Return an array of numpy as it is, and a tensor of torch, wherever it is, as one."""
    return array if isinstance(array, np.ndarray) else array.detach().float().cpu().numpy()
