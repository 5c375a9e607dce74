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
"""Texts of classes as vectors: the wordings of each class by the text tower of a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from owseg_ros.language.book import embed_texts
from owseg_ros.language.contract import TextEncoder
from owseg_ros.language.text import normalise_text
from owseg_ros.language.vocabulary import default_vocabulary, Vocabulary
from owseg_training.clip_text import clip_text_tower
from owseg_training.text_encoder import TextTower
import torch

# File in a run's folder with the name of the text space of its region embeddings.
TEXT_SPACE = 'text_space.txt'
BATCH = 64


class TowerEncoder(TextEncoder):
    """
    A TextEncoder (owseg_ros.language.contract) by a text tower of fixed length in torch.

    tower: of clip_text.clip_text_tower.
    """

    def __init__(self, tower: TextTower) -> None:
        self.space, self.dim = tower.manifest['space'], tower.manifest['dim']
        self.key, self.templates = self.space, tower.manifest['templates']
        self._tower = tower

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D], rows of unit length."""
        rows = [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(texts), BATCH):
            tokens = torch.tensor(self._tower.original(texts[start:start + BATCH]))
            rows.append(self._tower.network(tokens).float().numpy())
        return np.concatenate(rows)


@dataclass(frozen=True, eq=False)
class ClassTexts:
    """
    What classes are called, in words and as vectors.

    space: of the vectors. wordings: for each class its texts; rows: for each class float32
    [wordings, D], each the mean over the prompt templates, of unit length.
    """

    space: str
    wordings: tuple[tuple[str, ...], ...]
    rows: tuple[torch.Tensor, ...]


def class_wordings(names: Sequence[str],
                   vocabulary: Vocabulary | None = None) -> tuple[tuple[str, ...], ...]:
    """
    Return the texts of each class: its name's wordings, those of queries for it.

    Names are spelt as queries are. A wording of two classes is left to the one it names, else to
    the first one.
    """
    vocabulary = default_vocabulary() if vocabulary is None else vocabulary
    spelt = [normalise_text(name.replace('_', ' ')) for name in names]
    taken, found = set(spelt), []
    for name in spelt:
        own = [name] if name in vocabulary.expand(name) else []
        more = [text for text in vocabulary.expand(name) if text not in taken]
        taken.update(more)
        found.append(tuple([*own, *more] or [name]))
    return tuple(found)


def class_texts(encoder: TowerEncoder, names: Sequence[str],
                vocabulary: Vocabulary | None = None) -> ClassTexts:
    """Encode the wordings of classes; vocabulary: None for that of owseg_ros."""
    vocabulary = default_vocabulary() if vocabulary is None else vocabulary
    wordings = class_wordings(names, vocabulary)
    rows = embed_texts(encoder, vocabulary, [text for group in wordings for text in group])
    return ClassTexts(encoder.space, wordings, tuple(
        torch.from_numpy(rows).split([len(group) for group in wordings])))


def clip_class_texts(model: str, weights: str | Path | None,
                     names: Sequence[str]) -> ClassTexts:
    """
    Encode the wordings of classes by the text tower of an open_clip model.

    model, weights: as for clip_text.clip_text_tower, and errors as there.
    """
    return class_texts(TowerEncoder(clip_text_tower(model, weights)), names)
