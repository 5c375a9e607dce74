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

"""Prototypes: what the regions of a class have in common (RAML 3.2 and eq 10)."""

from __future__ import annotations

from collections.abc import Sequence
import os
from pathlib import Path

import numpy as np
from owseg_training.class_regions import embed_classes
from owseg_training.config import Config
from owseg_training.data.datasets import DataSet
from owseg_training.network import MaskClassifier

KNOWN_PROTOTYPES = 'known_prototypes.npz'


def prototype(embeddings: np.ndarray) -> np.ndarray:
    """Return the mean of embeddings [S, D] at unit length, float32 [D] (RAML eq 10)."""
    mean = embeddings.mean(0)
    return (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)


def class_prototypes(embeddings: np.ndarray, classes: np.ndarray,
                     num_classes: int) -> np.ndarray:
    """
    Return the prototype of each class, float32 [K, D]; NaN for classes without a region.

    embeddings float [R, D]; classes: int [R], ids in 0..K-1.
    """
    rows = np.full((num_classes, embeddings.shape[1]), np.nan, np.float32)
    for index in np.unique(classes):
        rows[index] = prototype(embeddings[classes == index])
    return rows


def known_prototypes(network: MaskClassifier, data_set: DataSet, config: Config,
                     frames: int | None = None) -> np.ndarray:
    """
    Return the prototypes of a set's classes, float32 [K, D], NaN for classes that do not occur.

    One region a class and picture, all of its labelled pixels; see embed_classes.
    """
    found = embed_classes(network, data_set, config, frames)
    return class_prototypes(found.rows, found.classes, len(data_set.classes))


def write_known_prototypes(folder: str | Path, rows: np.ndarray, names: Sequence[str]) -> Path:
    """Write known_prototypes.npz: embeddings float32 [K, D] and names [K], without pickle."""
    path = Path(folder) / KNOWN_PROTOTYPES
    temporary = path.with_suffix('.tmp')
    with temporary.open('wb') as file:
        np.savez(file, embeddings=rows.astype(np.float32), names=np.array(list(names)))
    os.replace(temporary, path)
    return path
