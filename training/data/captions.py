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
"""Pictures with captions, and with class-agnostic masks where some are at hand (OpenSeg)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np
from owseg_ros.language import default_vocabulary
from owseg_training.config import DataConfig, GroundingConfig
from owseg_training.data.dataset import read_image, read_label
from owseg_training.data.errors import DataError
from owseg_training.data.grounding_stream import keep_words, Truth
from owseg_training.data.label_sets import VOID
from owseg_training.data.stream import ClosedSetStream
from owseg_training.data.words import held_out_words, WordTable
import torch

REGIONS = 'regions'
_NEEDS = ('it needs images/<name>.*, captions.json {"<name>": ["a caption", ...], ...} and may '
          'have regions/<name>.png (ids of masks, 255 for none), which owseg-train pseudo-masks '
          'writes')


@dataclass(frozen=True)
class CaptionItem:
    """A picture on disk, its captions, and its regions where it has some."""

    name: str
    image: Path
    captions: tuple[str, ...]
    regions: Path | None


def caption_images(folder: Path) -> dict[str, Path]:
    """
    Return the pictures of a folder, those of its images/, by name.

    Raises DataError where there are none, or two of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted((folder / 'images').glob('*.*')):
        if path.stem in found:
            raise DataError(f'{found[path.stem]} and {path.name} have the same name; rename one')
        found[path.stem] = path
    if not found:
        raise DataError(f'{folder} holds no pictures; {_NEEDS}')
    return found


def caption_nouns() -> tuple[str, ...]:
    """Return what captions are searched for: all names of the vocabulary, no held-out words."""
    held_out = held_out_words()
    return tuple(name for name in default_vocabulary().wordings if name not in held_out)


class CaptionFolder:
    """
    Pictures with captions: images/<name>.*, captions.json, regions/<name>.png where known.

    Regions are ids 0..254 of class-agnostic masks, at the picture's size; 255 is in none.
    items: those that have captions.  Raises DataError, which says how the folder must look.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        listing = self.folder / 'captions.json'
        if not listing.is_file():
            raise DataError(f'{listing} is missing; {_NEEDS}')
        images = caption_images(self.folder)
        captions = self._captions(listing)
        missing = sorted(set(captions) - set(images))
        if missing:
            raise DataError(f'{listing} has captions of {len(missing)} pictures that are not in '
                            f'images/, first {missing[0]!r}; {_NEEDS}')
        self.items = tuple(
            CaptionItem(name, images[name], texts, regions if regions.is_file() else None)
            for name, texts in captions.items()
            for regions in [self.folder / REGIONS / f'{name}.png'])

    @staticmethod
    def _captions(listing: Path) -> dict[str, tuple[str, ...]]:
        try:
            content: Any = json.loads(listing.read_text('utf-8'))
        except ValueError as error:
            raise DataError(f'{listing} is no JSON: {error}; {_NEEDS}') from error
        if not (isinstance(content, Mapping) and content):
            raise DataError(f'{listing} names no picture; {_NEEDS}')
        for name, texts in content.items():
            if not (isinstance(texts, list) and texts
                    and all(isinstance(text, str) for text in texts)):
                raise DataError(f'{listing}: the captions of {name!r} must be a list of texts')
        return {name: tuple(content[name]) for name in sorted(content)}

    def __len__(self) -> int:
        return len(self.items)

    def read(self, item: CaptionItem) -> tuple[np.ndarray, np.ndarray]:
        """
        Read (RGB uint8 [H, W, 3], regions uint8 [H, W], all 255 where there are none).

        Raises DataError when they cannot be read or differ in size.
        """
        image = read_image(item.image)
        if item.regions is None:
            return image, np.full(image.shape[:2], VOID, np.uint8)
        regions = read_label(item.regions)
        if regions.shape != image.shape[:2]:
            height, width = image.shape[:2]
            raise DataError(f'{item.regions} must be {width}x{height} as {item.image.name}, not '
                            f'{regions.shape[1]}x{regions.shape[0]}')
        return image, regions


class CaptionStream(ClosedSetStream):
    """
    Augmented pictures with the words of one of their captions.

    Each word of the table that the caption has is kept with the probability grounding.keep
    (OpenSeg: 0.75); nothing is known of the concepts.  Item i is (image float32 [3, H, W], Truth)
    and a pure function of (seed, i).  Raises DataError where no caption has a word of the table.
    """

    def __init__(self, folder: CaptionFolder, config: DataConfig, seed: int, length: int,
                 grounding: GroundingConfig, table: WordTable) -> None:
        super().__init__(folder, config, seed, length)
        self.grounding = grounding
        self.table = table
        if not any(table.find(caption) for item in folder.items for caption in item.captions):
            raise DataError(f'no caption of {folder.folder} has one of the {len(table.words)} '
                            f'words that are looked for, such as {table.words[0]!r}')

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Truth]:
        image, regions = super().__getitem__(index)
        rng = np.random.default_rng((self.seed, 6, index))
        captions = self._pick(index).captions
        found = self.table.find(captions[rng.integers(len(captions))])
        words = torch.from_numpy(keep_words(found, self.grounding.keep, rng))
        return image, Truth(torch.full_like(regions, VOID), words, regions)

    def _sample(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self.data_set.read(self._pick(index))
