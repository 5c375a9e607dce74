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

import logging
import threading
from typing import Any, Optional

import numpy as np
from owseg_ros.readout.cpu import CpuReadout
from owseg_ros.readout.gpu import GpuReadout, GpuReadoutError, on_gpu
from owseg_ros.readout.maps import ALL_MAPS, Maps, QUERY_MAPS

AUTO, CPU, GPU = 'auto', 'cpu', 'gpu'
READOUTS = (AUTO, CPU, GPU)

_LOG = logging.getLogger(__name__)


class ChosenReadout:
    """
    A readout that always answers; called like CpuReadout.

    choice: 'cpu'; 'gpu' for all frames; or 'auto': on the GPU where the masks are there. Then its
    kernels are made in a thread of their own, while the CPU answers. threads: of the CPU's.

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
        gpu = self._gpu
        if gpu is None and self.masks_on_device and on_gpu(mask_logits):
            self._prepare(mask_logits, probabilities, *rest[:3],
                          outlier=rest[4] if len(rest) > 4 else named.get('outlier'))
        elif gpu is not None and (self.choice == GPU or on_gpu(mask_logits)):
            try:
                return gpu(mask_logits, probabilities, *rest, **named)
            except GpuReadoutError as error:
                self._give_up(error)
        return self._cpu(host_array(mask_logits), probabilities, *rest, **named)

    def wait(self, timeout: Optional[float] = None) -> None:
        """Wait until no kernels are being made, or for so many seconds."""
        if self._preparation is not None:
            self._preparation.join(timeout)

    def _prepare(self, mask_logits: Any, probabilities: np.ndarray, *task: Any,
                 outlier: Optional[np.ndarray]) -> None:
        if self._preparation is not None:
            return

        def make() -> None:
            try:
                gpu = GpuReadout()
                gpu(mask_logits, probabilities, *task, ALL_MAPS, outlier)
                gpu(mask_logits, probabilities, *task, ALL_MAPS | QUERY_MAPS, outlier,
                    query_weights=probabilities[:, :1], query_thresholds=np.ones(1, np.float32))
                self._gpu = gpu
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


def host_array(array: Any) -> np.ndarray:
    """Return an array of numpy as it is, and a tensor of torch, wherever it is, as one."""
    return array if isinstance(array, np.ndarray) else array.detach().float().cpu().numpy()
