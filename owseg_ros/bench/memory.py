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
"""Memory of a first readout, in a process that has done nothing before, and that of a GPU."""

from __future__ import annotations

from collections.abc import Callable
import gc
import importlib
import multiprocessing
from pathlib import Path
import tempfile
from typing import Any, Optional, Protocol

import numpy as np
from owseg_ros.bench.peers import open_peers
from owseg_ros.bench.timing import peak_memory
from owseg_ros.readout import CpuReadout, ReadoutSettings

_WARM = (64, 64)


class Gpu(Protocol):
    """What is asked of a GPU, as engine.cuda has it."""

    def gpu_facts(self) -> dict[str, Any]:
        """Return its name and what else belongs in the report."""

    def used_bytes(self) -> int:
        """Return how much of its memory is in use, by whomever."""

    def let_go(self) -> None:
        """Give back the memory that is only kept for later."""


def open_gpu(used: bool) -> Optional[Gpu]:
    """
    Return the GPU; None where it is not used, or torch, which is asked about it, does not see it.

    ONNX Runtime needs no torch to run on a GPU.
    """
    if not used:
        return None
    try:
        torch = importlib.import_module('torch')
        return importlib.import_module(
            'owseg_ros.engine.cuda') if torch.cuda.is_available() else None
    except (ImportError, OSError):
        return None


class GpuMemory:
    """
    GPU memory that is taken from the making of this object on.

    What counts is what the driver calls used, of the whole GPU: weights, captured graphs,
    workspaces, and what the allocators of torch, TensorRT and ONNX Runtime keep, which is what
    they took at their peak. The CUDA context is there before and does not count; kernels that are
    loaded meanwhile do, and whatever another process takes. gpu: None for no GPU.
    """

    def __init__(self, gpu: Optional[Gpu]) -> None:
        self._gpu = gpu
        self._before = 0
        if gpu is not None:
            gc.collect()
            gpu.let_go()
            self._before = gpu.used_bytes()

    def after(self, call: Callable[[], Any]) -> Optional[float]:
        """
        Call, return how many MiB are taken then, and let go of what is only kept.

        None without a GPU, where it calls all the same.
        """
        call()
        if self._gpu is None:
            return None
        found = (self._gpu.used_bytes() - self._before) / 2 ** 20
        self._gpu.let_go()
        return found


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
