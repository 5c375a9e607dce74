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
"""
Passes of a network on a CUDA GPU: pinned copies, a stream, and a CUDA graph for each batch size.

What runs the network, TensorRT or torch, is the caller's. Imported only where there is such a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
import threading
from typing import Any, Callable, Optional, Sequence

from owseg_ros.engine.contract import EngineError
import torch

# CUDA graphs are captured one at a time in a process, whoever's they are.
_CAPTURE = threading.Lock()


@dataclass
class Pass:
    """
    One batch size of a network.

    image: float32 [B, 3, H, W] on the GPU, the input. enqueue: queues the network on the current
    stream, with what image holds, and returns its outputs by name.
    """

    image: torch.Tensor
    enqueue: Callable[[], dict[str, torch.Tensor]]


@dataclass
class _Prepared:
    """A pass that has run once, its outputs, and the graph that writes them."""

    work: Pass
    outputs: dict[str, torch.Tensor]
    graph: Optional[torch.cuda.CUDAGraph] = None


class CudaPasses:
    """
    Runs passes on a stream of its own; serves one thread at a time.

    prepare: makes the Pass of a batch size, on its first use, on that stream. graphs: whether a
    pass is captured as a CUDA graph, so that it is launched as one; where that fails, note is
    told and passes run without. A captured graph owns what it writes to, in memory that the
    graphs share: one replays at a time, and its outputs are fetched before the next. Those made
    after a larger batch take little more.
    """

    def __init__(self, prepare: Callable[[int], Pass], graphs: bool = True,
                 note: Callable[[str], object] = lambda text: None) -> None:
        self._prepare = prepare
        self._graphs = graphs
        self._note = note
        self._pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()
        self._passes: dict[int, _Prepared] = {}

    def run(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Return every output for a batch float32 [B, 3, H, W], on the CPU (pinned) or the GPU.

        The tensors lie on the GPU and are overwritten by the next call with this batch size; the
        work is queued on `stream`. Raises EngineError.
        """
        try:
            with torch.cuda.stream(self.stream):
                prepared = self._passes.get(len(batch)) or self._make(len(batch))
                prepared.work.image.copy_(batch, non_blocking=True)
                if prepared.graph is None:
                    return prepared.work.enqueue()
                prepared.graph.replay()
                return prepared.outputs
        except torch.cuda.OutOfMemoryError as error:
            raise EngineError(f'not enough GPU memory for a batch of {len(batch)}: close what '
                              'else uses the GPU, or take fewer frames at a time') from error
        except RuntimeError as error:
            raise _failure(error) from error

    def fetch(self, outputs: dict[str, torch.Tensor], names: Sequence[str],
              on_device: Sequence[str] = ()) -> list[Any]:
        """
        Return the named outputs, of the caller's own; waits for the GPU. Raises EngineError.

        As float32 arrays; those in on_device as tensors on the GPU, in the type that they have.
        """
        try:
            with torch.cuda.stream(self.stream):
                copies = [outputs[name].clone() if name in on_device else torch.empty(
                    outputs[name].shape, dtype=outputs[name].dtype, pin_memory=True).copy_(
                        outputs[name], non_blocking=True) for name in names]
                self.stream.synchronize()
        except RuntimeError as error:
            raise _failure(error) from error
        return [copy if copy.is_cuda else copy.float().numpy() for copy in copies]

    def _make(self, size: int) -> _Prepared:
        work = self._prepare(size)
        # The first pass sets things up and must not be captured.
        prepared = _Prepared(work, work.enqueue())
        self.stream.synchronize()
        if self._graphs:
            self._capture(prepared)
        self._passes[size] = prepared
        return prepared

    def _capture(self, prepared: _Prepared) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the GPU meanwhile, such as the engine that serves.
            with _CAPTURE, torch.cuda.graph(graph, pool=self._pool, stream=self.stream,
                                            capture_error_mode='thread_local'):
                prepared.outputs = prepared.work.enqueue()
        except (EngineError, RuntimeError) as error:
            self._graphs = False
            self._note(f'without a CUDA graph: {" ".join(str(error).split())[:200]}')
            return
        prepared.graph = graph


def gpu_facts() -> dict[str, Any]:
    """Return name, memory and compute capability of the GPU, and what torch was built with."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {'name': found.name, 'memory_gib': round(found.total_memory / 2 ** 30, 1),
            'compute_capability': f'{found.major}.{found.minor}', 'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version()}


def used_bytes() -> int:
    """Return how much memory of the GPU is in use, by whomever, as its driver tells."""
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


def let_go() -> None:
    """Give the memory that torch keeps for later back to the driver."""
    torch.cuda.empty_cache()


def _failure(error: RuntimeError) -> EngineError:
    return EngineError(f'the GPU failed: {" ".join(str(error).split())[:300]}')
