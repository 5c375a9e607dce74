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
"""What a benchmark is asked to measure, and on what."""

from __future__ import annotations

from dataclasses import dataclass
import os
from pathlib import Path
from typing import Any

from owseg_ros.bench.peers import CPU, CUDA, PEERS
from owseg_ros.engine import OnnxEngine, TensorrtOptions, TorchEngine, TorchOptions
from owseg_ros.errors import OwsegError

SECTIONS = ('readout', 'pipelines', 'segmenter', 'network', 'growth', 'nodes')
# 'model' is the network of the model that is measured.
PIPELINES = ('model', 'small', 'swin_t', 'swin_b')
AUTO = 'auto'
PEER_DEVICES = (AUTO, CPU, CUDA)


class BenchError(OwsegError):
    """Options that cannot be measured; the message says what to give."""


@dataclass(frozen=True)
class BenchOptions:
    """
    What to measure.

    model: folder of a bundle, None for the default; engine, providers, threads: as for Segmenter,
    threads also of what is measured beside it, 0 for the number of cores; torch_device,
    torch_precision, torch_compile, tensorrt_precision: of these engines, as the node's
    parameters; source: of the frames; sizes: (width, height) of frames, the first one for
    batches and the node; batches: frames in a pass; repeats: of each call; seconds: of each run
    of the node; sections: of SECTIONS.

    pipelines: of PIPELINES; pipeline_sizes: (width, height) of their frames, and of their
    networks but for 'model'; pipeline_batches: frames that they are given at a time; where it is
    one number, their networks are exported for just that; peers: module with what to compare
    with, '' for nothing; peer_device: of PEER_DEVICES, auto for where the engine runs; compiled:
    whether torch.compile of the peer is measured too, which takes minutes; cache: folder of
    exported networks, None for that of the user; domain: of ROS, None for a private one.

    Raises BenchError for what there is not and numbers that cannot be, EngineError for options
    of an engine.
    """

    model: Path | None = None
    engine: str = 'onnx'
    providers: tuple[str, ...] = ('cpu',)
    threads: int = 0
    torch_device: str = CUDA
    torch_precision: str = AUTO
    torch_compile: bool = False
    tensorrt_precision: str = AUTO
    source: str = 'scene'
    sizes: tuple[tuple[int, int], ...] = ((640, 480), (1280, 720), (1920, 1080))
    batches: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 12
    seconds: float = 20.0
    sections: tuple[str, ...] = SECTIONS
    pipelines: tuple[str, ...] = ('model', 'small', 'swin_t')
    pipeline_sizes: tuple[tuple[int, int], ...] = ((640, 480),)
    pipeline_batches: tuple[int, ...] = (1,)
    peers: str = PEERS
    peer_device: str = AUTO
    compiled: bool = False
    cache: Path | None = None
    domain: int | None = None

    def __post_init__(self) -> None:
        for name, known in (('sections', SECTIONS), ('pipelines', PIPELINES)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise BenchError(f'there are no {name} {", ".join(unknown)}; choose from '
                                 f'{", ".join(known)}')
        counts = self.repeats, *(min(batches, default=0) for batches in (
            self.batches, self.pipeline_batches))
        if min(counts) < 1 or self.seconds <= 0:
            raise BenchError('repeats and batches must be 1 or more, and seconds positive')
        if self.peer_device not in PEER_DEVICES:
            raise BenchError(f'unknown peer_device {self.peer_device!r}; choose from '
                             f'{", ".join(PEER_DEVICES)}')
        if not self.sizes or min(min(size) for size in self.sizes) < 16:
            raise BenchError('frames must be at least 16 pixels wide and high')
        if not self.pipeline_sizes or any(
                side < 32 or side % 32 for size in self.pipeline_sizes for side in size):
            raise BenchError('width and height of pipelines must be multiples of 32')
        self.engine_options(1)

    @property
    def on_gpu(self) -> bool:
        """Return whether anything is asked to run on a GPU."""
        if self.engine == OnnxEngine.name:
            engine = tuple(self.providers[:1]) != (CPU,)
        else:
            engine = self.engine != TorchEngine.name or self.torch_device == CUDA
        return engine or self.peer_device == CUDA

    @property
    def export(self) -> tuple[int | None, Path, bool]:
        """Return how pipelines are exported: batch, folder, and whether with a program."""
        batches = self.pipeline_batches
        return (batches[0] if len(batches) == 1 else None, self.cache or cache_folder(),
                self.engine == TorchEngine.name)

    def engine_options(self, largest: int) -> dict[str, Any]:
        """Return the options of both engines, ready for so many frames; raise EngineError."""
        return {'tensorrt': TensorrtOptions(self.tensorrt_precision, max_batch=largest),
                'torch': TorchOptions(self.torch_device, self.torch_precision,
                                      self.torch_compile, largest)}

    def engine_parameters(self) -> dict[str, Any]:
        """Return the parameters of the node that say the same of its engine."""
        return {name: getattr(self, name) for name in (
            'engine', 'torch_device', 'torch_precision', 'torch_compile', 'tensorrt_precision')}


def cache_folder() -> Path:
    """Return where exported networks are kept, in the cache of the user."""
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'owseg_ros/bench'
