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

"""Samples for grounding: a picture, the words that name what it shows, and its regions."""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import numpy as np
from owseg_ros.scene import HAZARD_KINDS, StreetScene
from owseg_training.config import DataConfig, GroundingConfig
from owseg_training.data.anomaly_mix import OUTLIER, paste
from owseg_training.data.cutouts import CutoutSet
from owseg_training.data.dataset import DataSet
from owseg_training.data.label_sets import VOID
from owseg_training.data.stream import ClosedSetStream
from owseg_training.data.words import WordTable
import torch

MAX_WORDS = 24
# A class that is hardly to be seen is not worth a word.
_SEEN = 1e-3
# Making a street takes most of a second and some 25 MB; its frames are cheap.
_STREETS = 8
_CYCLES = 10


class Truth(NamedTuple):
    """
    What is known of a batch of pictures.

    concepts: uint8 [B, H, W], ids of the stream's labels, 255 where nothing is known.
    words: int64 [B, MAX_WORDS], indices into the word table, -1 for none.
    regions: uint8 [B, H, W], ids of class-agnostic masks, 255 for none; the concepts where those
    are known.
    """

    concepts: torch.Tensor
    words: torch.Tensor
    regions: torch.Tensor

    def to(self, *args: Any, **options: Any) -> Truth:
        """Move the tensors."""
        return Truth(*(tensor.to(*args, **options) for tensor in self))


def keep_words(words: Sequence[int], keep: float, rng: np.random.Generator) -> np.ndarray:
    """Return int64 [MAX_WORDS]: each word with a probability, then -1; the first ones if full."""
    kept = [word for word in words if rng.random() < keep][:MAX_WORDS]
    return np.array(kept + [-1] * (MAX_WORDS - len(kept)), np.int64)


def stream_labels(data_set: DataSet, objects: CutoutSet | None) -> tuple[str, ...]:
    """Return the names of the ids in Truth.concepts: classes, hazards of the street, objects."""
    pasted = () if objects is None else objects.categories
    return (*(c.name for c in data_set.classes),
            *dict.fromkeys((*HAZARD_KINDS, *pasted)))


class GroundingStream(ClosedSetStream):
    """
    Augmented samples of a labelled set, with words in place of captions.

    Each class that is to be seen is named by one of its words, which is kept with the probability
    config.keep (OpenSeg keeps a noun with 0.75).  Objects are pasted in, and the procedural
    street shows its hazards, all under their own names.
    Item i is (image float32 [3, H, W], Truth) and a pure function of (seed, i).
    """

    def __init__(self, data_set: DataSet, config: DataConfig, seed: int, length: int,
                 grounding: GroundingConfig, table: WordTable, labels: Sequence[str],
                 objects: CutoutSet | None) -> None:
        super().__init__(data_set, config, seed, length)
        self.grounding = grounding
        self.table = table
        self.ids = {name: i for i, name in enumerate(labels)}
        self.objects = objects
        self.categories = [] if objects is None else [
            [item for item in objects.items if item.category == name]
            for name in objects.categories]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Truth]:
        image, label = super().__getitem__(index)
        rng = np.random.default_rng((self.seed, 5, index))
        return image, Truth(label, torch.from_numpy(self._words(label.numpy(), rng)), label)

    def _words(self, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        counts = np.bincount(label.ravel(), minlength=256)[:len(self.ids)]
        seen = np.flatnonzero(counts > _SEEN * label.size)
        drawn = [self.table.draw(concept, self.grounding.hypernyms, rng) for concept in seen]
        return keep_words(drawn, self.grounding.keep, rng)

    def _sample(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, label = super()._sample(index, rng)
        if self.objects is None or rng.random() >= self.grounding.object_probability:
            return image, label
        # A category first: where most pictures are of animals, all that is odd became one.
        alike = self.categories[rng.integers(len(self.categories))]
        item = alike[rng.integers(len(alike))]
        image, label = paste(image, label, self.objects.read(item),
                             self.grounding.object_height, rng)
        label[label == OUTLIER] = self.ids[item.category]
        return image, label

    def _street(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        scene = _scene(int(rng.integers(_STREETS)))
        events = scene.hazard_times(_CYCLES)
        event = events[rng.integers(len(events))]
        frame = scene.render(int(rng.integers(event.first_index, event.last_index + 1)))
        label = self.data_set.map_label(frame.labels).copy()
        # Nearer hazards have later boxes' pixels only where they are seen.
        for hazard in sorted(frame.hazards, key=lambda hazard: -hazard.distance_m):
            x0, y0, x1, y1 = hazard.box
            window = label[y0:y1, x0:x1]
            window[frame.labels[y0:y1, x0:x1] == OUTLIER] = self.ids[hazard.kind]
        label[label == OUTLIER] = VOID
        return frame.image, label


@functools.lru_cache(maxsize=_STREETS)
def _scene(seed: int) -> StreetScene:
    return StreetScene(width=480, height=360, seed=2000 + seed, hazards=True)
