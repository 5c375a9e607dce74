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

from collections.abc import Callable
from dataclasses import dataclass
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np
from owseg_ros.bundle import Bundle

PEERS = 'owseg_training.bench'


@dataclass(frozen=True)
class PeerPipeline:
    """
    Another project's pipeline, and our bundle of the same network and weights.

    title: of the network; calls: name to a function from a frame, uint8 [H, W, 3] RGB, to its
    class ids [H, W]; outputs: from a frame to the network's mask logits [N, h, w] and class
    probabilities [N, K], to see that it is the same network.
    """

    title: str
    bundle: Path
    calls: dict[str, Callable[[np.ndarray], np.ndarray]]
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

    def hugging_face(self, kind: str, size: tuple[int, int], threads: int, cache: Path,
                     compiled: bool, say: Callable[[str], None]) -> PeerPipeline:
        """
        Return Hugging Face's Mask2Former of random weights for frames of size (width, height).

        kind: 'small' or 'swin_t'; cache: folder that keeps the exported network; compiled:
        whether torch.compile is measured too.
        """

    def hugging_face_around(self, bundle: Bundle, threads: int) -> PeerPipeline:
        """
        Return Hugging Face's processing around the network of a bundle, run by ONNX Runtime.

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
