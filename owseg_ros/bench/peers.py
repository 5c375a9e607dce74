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
What the runtime is measured against: a module that needs torch and is not part of it.

The module is opened by name, so that the runtime does not depend on it; without it the benchmark
leaves these rows out and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np
from owseg_ros.bundle import Bundle
from owseg_ros.engine import Engine

PEERS = 'owseg_training.bench'


CPU, CUDA = 'cpu', 'cuda'

Frames = Sequence[np.ndarray]


def peer_precisions(precision: str) -> tuple[str, ...]:
    """Return what runs beside an engine of a precision: fp32, then what is most like it."""
    return {'fp32': ('fp32',), 'bf16': ('fp32', 'bf16')}.get(precision, ('fp32', 'fp16'))


@dataclass(frozen=True)
class PeerRun:
    """
    How another project's pipeline is run.

    device: CPU or CUDA; precisions: fp32 (without TF32), fp16 or bf16 (autocast), each of which
    is measured; compiled: whether torch.compile is measured too; threads: of the CPU.
    """

    device: str = CPU
    precisions: tuple[str, ...] = ('fp32',)
    compiled: bool = False
    threads: int = 1


@dataclass(frozen=True)
class PeerCall:
    """
    One way to run another project's pipeline.

    call: from frames, uint8 [H, W, 3] RGB, to their class ids [H, W] on the host, so that it has
    waited for a GPU when it returns; precision: of PeerRun.precisions.
    """

    call: Callable[[Frames], list[np.ndarray]]
    precision: str


@dataclass(frozen=True)
class PeerPipeline:
    """
    Another project's pipeline, and our bundle of the same network and weights.

    title: of the network; where: it runs, for people; calls: by name; outputs: from a frame,
    uint8 [H, W, 3] RGB, to the network's mask logits [N, h, w] and class probabilities [N, K], to
    see that it is the same network.
    """

    title: str
    bundle: Path
    where: str
    calls: dict[str, PeerCall]
    outputs: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Peers(Protocol):
    """The functions of the module."""

    def official_order(self, size: tuple[int, int], threads: int) -> Callable[
            [np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """
        Return the published order of operations in torch.

        From mask logits [N, h, w] and class probabilities [N, K] to class ids, max_k L_k and the
        RbA score of size (height, width).
        """

    def hugging_face(self, kind: str, size: tuple[int, int], batch: Optional[int], run: PeerRun,
                     cache: Path, program: bool, say: Callable[[str], None]) -> PeerPipeline:
        """
        Return Hugging Face's Mask2Former of random weights for frames of size (width, height).

        kind: 'small', 'swin_t' or 'swin_b'; batch: that the bundle is fixed to, None for any;
        cache: folder that keeps the bundle; program: whether it needs a torch program.
        """

    def export(self, kind: str, size: tuple[int, int], batch: Optional[int], cache: Path,
               program: bool, say: Callable[[str], None]) -> Path:
        """Return the folder of the bundle of hugging_face, made where it is not there yet."""

    def hugging_face_around(self, bundle: Bundle, engine: Engine, run: PeerRun) -> PeerPipeline:
        """
        Return Hugging Face's processing around the network of a bundle, run by our engine.

        Image processor and post-processing are those of Mask2Former.
        """

    def draw_growth(self, growth: dict[str, Any], path: Path) -> None:
        """Draw the curves of a report's section `growth` as a picture."""

    def packages(self) -> tuple[str, ...]:
        """Return the packages whose versions belong in the report."""


def open_peers(name: str = PEERS) -> tuple[Optional[Peers], str]:
    """Return the module, or None and why there is none."""
    if not name:
        return None, 'not asked for'
    try:
        if importlib.util.find_spec(name) is None:
            return None, f'there is no module {name}'
        return importlib.import_module(name), ''
    except ModuleNotFoundError as error:
        return None, (f'{error.name} is not installed: pip install "owseg_ros[training]" for what '
                      'is measured beside it')
