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
"""Which taught class a region is of, or none: RAML, equations 11 and 12."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
from owseg_ros.bundle import Bundle
from owseg_ros.novelty.arrays import NoveltyError
from owseg_ros.novelty.metric_head import novelty_of
from owseg_ros.novelty.prototypes import MetricSpace, PrototypeSet, TaughtClass

NO_MATCH = -1


@dataclass(frozen=True, eq=False)
class PreparedPrototypes:
    """
    A set of taught classes ready for a model's frames; nothing in it changes.

    prototypes: the set. thresholds: float32 [M], least cosine of each class, read-only.
    palette: uint8 [256, 3] RGB of all ids, taught ones too, read-only. all_masks: whether the
    network's masks are compared too, and not only anomalous regions.
    """

    prototypes: PrototypeSet
    thresholds: np.ndarray
    palette: np.ndarray
    all_masks: bool = False

    def __len__(self) -> int:
        return len(self.prototypes.classes)

    @property
    def version(self) -> int:
        """Return the version of the set."""
        return self.prototypes.version

    @property
    def space(self) -> MetricSpace:
        """Return where its embeddings come from."""
        return self.prototypes.space

    @property
    def classes(self) -> tuple[TaughtClass, ...]:
        """Return the taught classes, by rising id."""
        return self.prototypes.classes

    def match(self, embeddings: np.ndarray,
              known: Optional[np.ndarray] = None) -> tuple[np.ndarray, np.ndarray]:
        """
        Return for each region the index of its class, int64 [R], and the best cosine, float32 [R].

        embeddings: float32 [R, D] of unit length. The index is NO_MATCH where no class reaches
        its threshold (equation 12; at the threshold is a match, as in the authors' code); else
        it is of the largest cosine among those that do. The cosine is that class's, or the
        largest of all where there is none. known: float32 [K', D], prototypes of unit length
        that a region must be less similar to, None for none. Without taught classes it is -1.
        """
        count = len(embeddings)
        if not len(self):
            return np.full(count, NO_MATCH), np.full(count, -1, np.float32)
        cosines = embeddings @ self.prototypes.prototypes.T
        allowed = cosines >= self.thresholds
        if known is not None and len(known):
            allowed &= cosines > (embeddings @ known.T).max(axis=1, keepdims=True)
        best = np.where(allowed, cosines, -np.inf).argmax(axis=1)
        rows = np.arange(count)
        matched = allowed[rows, best]
        return (np.where(matched, best, NO_MATCH),
                np.where(matched, cosines[rows, best], cosines.max(axis=1)))


def prepare(prototypes: PrototypeSet, bundle: Bundle, threshold: Optional[float] = None,
            all_masks: bool = False) -> PreparedPrototypes:
    """
    Return a set ready for the frames of a bundle; once a set, not once a frame.

    threshold: for classes that have none of their own, a cosine -1..1; None for the model's.
    all_masks: see PreparedPrototypes. Raises NoveltyError where the set is of another model or
    the threshold is no cosine.
    """
    default = novelty_of(bundle).threshold if threshold is None else threshold
    if not -1.0 <= default <= 1.0:
        raise NoveltyError(f'a threshold is a cosine, -1..1, not {default}')
    check_space(prototypes.space, bundle)
    thresholds = np.array([default if taught.threshold is None else taught.threshold
                           for taught in prototypes.classes], np.float32)
    palette = bundle.palette()
    for taught in prototypes.classes:
        palette[taught.id] = taught.color
    for array in (thresholds, palette):
        array.setflags(write=False)
    return PreparedPrototypes(prototypes, thresholds, palette, all_masks)


def check_space(space: MetricSpace, bundle: Bundle) -> None:
    """Raise NoveltyError where embeddings of a space are not those of a bundle."""
    if space != MetricSpace.of(bundle):
        raise NoveltyError(f'these classes were taught to another model than {bundle.name}: teach '
                           'them again, or load the model that they were taught to')
