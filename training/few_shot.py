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

"""Classes taught offline, from a few labelled pictures: the file prototypes.npz (RAML 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from owseg_ros.novelty import PrototypeBook
from owseg_ros.segmenter import Segmenter
from owseg_training.bundle_regions import embed_masks
from owseg_training.data.dataset import read_grey
from owseg_training.data.datasets import DataError, DataSet, read_image
from owseg_training.prototypes import prototype

# Of the regions of known classes, the share that may be taken for a taught class.
FALSE_MATCHES = 0.01


@dataclass(frozen=True, eq=False)
class Example:
    """A picture that shows a class; mask: reads where, bool [H, W]; source: for people."""

    image: Path
    mask: Callable[[], np.ndarray]
    source: str


def folder_examples(folder: str | Path) -> list[Example]:
    """
    Return the examples of a folder: images/<name>.* and masks/<name>.png, non-zero is the class.

    Raises DataError where there are none, or a picture has no mask.
    """
    folder = Path(folder)
    found = []
    for image in sorted((folder / 'images').glob('*.*')):
        mask = folder / 'masks' / f'{image.stem}.png'
        if not mask.is_file():
            raise DataError(f'{image} has no mask; expected {mask}')
        found.append(Example(image, lambda path=mask: read_grey(path) != 0, str(image)))
    if not found:
        raise DataError(f'{folder} has no examples; expected images/<name>.jpg and '
                        'masks/<name>.png')
    return found


def class_examples(data_set: DataSet, name: str) -> list[Example]:
    """Return the pictures of a set, for a class; raises DataError where it has no such class."""
    names = [c.name for c in data_set.classes]
    if name not in names:
        raise DataError(f'{data_set.title} has no class {name!r}; it has {", ".join(names)}')
    number = names.index(name)
    return [Example(item.image, lambda item=item: data_set.read_label(item) == number,
                    f'{data_set.key} {Path(item.image).stem}') for item in data_set.items]


def choose_examples(examples: Sequence[Example], count: int, choice: str = 'largest',
                    seed: int = 0, min_area: int = 256) -> list[Example]:
    """
    Return the L examples that show a class: those with the largest area, or any (RAML C.7).

    Those with less than min_area pixels of the class are left out.  Raises DataError when fewer
    than count are left, or count is none.
    """
    if count < 1:
        raise DataError(f'a class is taught from 1 example or more, not {count}')
    areas = np.array([np.count_nonzero(example.mask()) for example in examples])
    order = (np.argsort(-areas, kind='stable') if choice == 'largest'
             else np.random.default_rng(seed).permutation(len(areas)))
    chosen = [examples[i] for i in order if areas[i] >= max(1, min_area)]
    if len(chosen) < count:
        raise DataError(f'{count} examples are asked for and {len(chosen)} pictures show at least '
                        f'{min_area} pixels of the class; ask for fewer, or give more pictures')
    return chosen[:count]


def _embed(segmenter: Segmenter, example: Example) -> np.ndarray:
    image, mask = read_image(example.image), example.mask()
    if mask.shape != image.shape[:2]:
        raise DataError(f'the mask of {example.image} is {mask.shape[1]}x{mask.shape[0]}, the '
                        f'picture {image.shape[1]}x{image.shape[0]}')
    return embed_masks(segmenter, image, [mask])


@dataclass(frozen=True)
class TaughtReport:
    """
    How well a class is taught.

    own: least cosine of a shot with the prototype of the others, None for a single shot; known:
    cosine that all but FALSE_MATCHES of the regions of known classes stay below; threshold: of
    the class.
    """

    name: str
    shots: int
    own: float | None
    known: float
    threshold: float

    @property
    def apart(self) -> bool:
        """Return whether the shots are nearer to each other than known regions are."""
        return self.known < (self.threshold if self.own is None else self.own)


def calibrate_class(name: str, shots: np.ndarray, known: np.ndarray,
                    default: float) -> TaughtReport:
    """
    Choose the threshold of a class from its shots [S, D] and known regions [R, D].

    With several shots it is in the middle between `own` and `known` of the report, or at `known`
    where that is not below; a single shot has the default unless `known` is above.
    """
    against = known @ prototype(shots)
    limit = float(np.quantile(against, 1 - FALSE_MATCHES)) if len(against) else -1.0
    if len(shots) < 2:
        return TaughtReport(name, len(shots), None, limit, min(1.0, max(default, limit)))
    own = min(float(shot @ prototype(np.delete(shots, i, axis=0)))
              for i, shot in enumerate(shots))
    threshold = (own + limit) / 2 if own > limit else limit
    return TaughtReport(name, len(shots), own, limit, float(np.clip(threshold, -1, 1)))


def teach(segmenter: Segmenter, examples: Mapping[str, Sequence[Example]],
          known: np.ndarray | None = None) -> tuple[PrototypeBook, list[TaughtReport]]:
    """
    Make the prototypes of classes from labelled examples, with a threshold each (RAML eq 10).

    examples: of each class by its name; known: float32 [R, D], embeddings of regions of known
    classes, None for the bundle's prototypes of them.
    Raises NoveltyError where the bundle cannot be taught or a name cannot be taken, DataError
    where a mask is not of its picture's size.
    """
    book = PrototypeBook(segmenter.bundle)
    if known is None:
        known = segmenter.metric_head.known
    reports = []
    for name, shots in examples.items():
        rows = np.concatenate([_embed(segmenter, shot) for shot in shots])
        for row, shot in zip(rows, shots):
            book.add_shot(name, row, source=shot.source)
        report = calibrate_class(name, rows, known, segmenter.bundle.novelty.threshold)
        book.set_threshold(name, report.threshold)
        reports.append(report)
    return book, reports
