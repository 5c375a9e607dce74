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
"""What engines have in common whose network runs on a CUDA GPU with torch tensors."""

from __future__ import annotations

from abc import abstractmethod
import importlib
from typing import Any, Sequence

import numpy as np
from owseg_ros.engine.contract import EngineError
from owseg_ros.engine.network import NetworkEngine
from owseg_ros.engine.onnx import one_line


def require_torch(engine: str) -> Any:
    """Return torch; raise EngineError where it is missing or does not load."""
    try:
        return importlib.import_module('torch')
    except (ImportError, OSError) as error:
        raise EngineError(f'the engine {engine} needs torch: {one_line(error)}; pip install '
                          'torch, or use the engine onnx') from error


def require_torch_cuda(engine: str) -> None:
    """Raise EngineError where torch, its CUDA build, a GPU or its driver is missing."""
    torch = require_torch(engine)
    if torch.version.cuda is None:
        raise EngineError(f'the installed torch {torch.__version__} is built without CUDA: '
                          'install the build for your CUDA version (https://pytorch.org)')
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
    except (RuntimeError, AssertionError) as error:
        raise EngineError(f'CUDA {torch.version.cuda} does not start: {one_line(error)}; compare '
                          'the GPU driver (nvidia-smi) with that version') from error
    if not count:
        raise EngineError('there is no GPU that CUDA can use: see nvidia-smi and '
                          'CUDA_VISIBLE_DEVICES')


class CudaEngine(NetworkEngine):
    """
    Runs a network in passes on the GPU (engine.cuda); the masks may stay there.

    Inputs and outputs on the host are pinned, so that a copy is one and need not wait.
    """

    on_gpu = True

    def warm_up(self, batch: int = 1) -> float:
        """Warm up one frame, and a whole batch; return ms of the last pass of the latter."""
        elapsed = 0.0
        for size in sorted({1, batch}):
            elapsed = super().warm_up(size)
        return elapsed

    @abstractmethod
    def _passes(self, names: Sequence[str]) -> Any:
        """Return the CudaPasses that compute these outputs."""

    def _run(self, names: Sequence[str], batch: np.ndarray) -> list[np.ndarray]:
        return self._run_passes(names, batch, ())

    def _run_on_device(self, names: Sequence[str], batch: np.ndarray) -> list[Any]:
        return self._run_passes(names, batch, names[:1])

    def _run_passes(self, names: Sequence[str], batch: np.ndarray,
                    on_device: Sequence[str]) -> list[Any]:
        torch, passes = importlib.import_module('torch'), self._passes(names)
        return passes.fetch(passes.run(torch.from_numpy(batch)), names, on_device)

    def _join(self, parts: Sequence[Any]) -> Any:
        if isinstance(parts[0], np.ndarray):
            return super()._join(parts)
        return importlib.import_module('torch').cat(list(parts))

    def _allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        torch = importlib.import_module('torch')
        return torch.zeros(shape, dtype=torch.float32, pin_memory=True).numpy()
