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
What `owseg bench` measures the runtime against; see owseg_ros.bench.peers.Peers.

The module is opened by its name: the runtime does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TYPE_CHECKING

from owseg_training.bench.official import official_order

if TYPE_CHECKING:
    from owseg_ros.bench.peers import PeerPipeline, PeerRun
    from owseg_ros.bundle import Bundle
    from owseg_ros.engine import Engine

__all__ = ['draw_growth', 'export', 'hugging_face', 'hugging_face_around', 'official_order',
           'packages']


def hugging_face(kind: str, size: tuple[int, int], batch: int | None, run: PeerRun, cache: Path,
                 program: bool, say: Callable[[str], None]) -> PeerPipeline:
    """Return Hugging Face's pipeline; opened late, for what only needs torch."""
    from owseg_training.bench.pipeline import open_pipeline

    return open_pipeline(kind, size, batch, run, cache, program, say)


def export(kind: str, size: tuple[int, int], batch: int | None, cache: Path, program: bool,
           say: Callable[[str], None]) -> Path:
    """Return the folder of the bundle of Hugging Face's network; opened late, as above."""
    from owseg_training.bench.pipeline import exported

    return exported(kind, size, batch, cache, program, say)


def hugging_face_around(bundle: Bundle, engine: Engine, run: PeerRun) -> PeerPipeline:
    """Return Hugging Face's processing around a bundle's network; opened late, as above."""
    from owseg_training.bench.pipeline import open_around

    return open_around(bundle, engine, run)


def draw_growth(growth: dict[str, Any], path: Path) -> None:
    """Draw the curves of a report's section `growth` as a picture."""
    from owseg_training.bench.curves import draw

    draw(growth, path)


def packages() -> tuple[str, ...]:
    """Return the packages whose versions belong in the report."""
    return 'torch', 'transformers'
