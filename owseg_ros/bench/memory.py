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
"""Memory that a first readout takes, in a process that has done nothing else before."""

from __future__ import annotations

from collections.abc import Callable
import multiprocessing
from pathlib import Path
import tempfile
from typing import Any, Optional

import numpy as np
from owseg_ros.bench.peers import open_peers
from owseg_ros.bench.timing import peak_memory
from owseg_ros.readout import CpuReadout, ReadoutSettings

_WARM = (64, 64)


def first_readout_memory(task: tuple[np.ndarray, np.ndarray], size: tuple[int, int], maps,
                         settings: ReadoutSettings, threads: int,
                         peers: str = '') -> Optional[float]:
    """
    Return how many MiB a readout of size (height, width) adds at its peak, its maps included.

    task: mask logits [N, h, w] and class probabilities [N, K], which count as there before;
    peers: the module whose published order is measured instead of the readout. The libraries are
    loaded before. None where the system does not tell.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, array in zip(('masks', 'probabilities'), task):
            np.save(Path(folder, f'{name}.npy'), array)
        context = multiprocessing.get_context('spawn')
        with context.Pool(1) as pool:
            return pool.apply(_measure, (folder, size, maps, settings, threads, peers))


def _measure(folder: str, size: tuple[int, int], maps, settings: ReadoutSettings, threads: int,
             peers: str) -> Optional[float]:
    masks, probabilities = (np.load(f'{folder}/{name}.npy')
                            for name in ('masks', 'probabilities'))

    def call(shape: tuple[int, int]) -> Callable[[Any], Any]:
        if peers:
            order = open_peers(peers)[0].official_order(shape, threads)
            return lambda masks: order(masks, probabilities)
        readout = CpuReadout(threads=threads)
        return lambda masks: readout(masks, probabilities, shape, shape, settings, maps)

    small = np.ascontiguousarray(masks[:, :_WARM[0] // 4, :_WARM[1] // 4])
    call(_WARM)(small)
    return peak_memory(lambda: call(size)(masks))
