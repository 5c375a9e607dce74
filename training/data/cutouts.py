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
"""Cut-outs of objects: RGBA pictures for pasting outliers (AnomalyMix, RbA section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import csv
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from owseg_training.data.dataset import data_root, read_image
from owseg_training.data.errors import DataError

# Categories of COCO that are classes of Cityscapes: no outliers on a road.
COCO_ROAD_CATEGORIES = ('person', 'bicycle', 'car', 'motorcycle', 'bus', 'train', 'truck',
                        'traffic light', 'stop sign')


@dataclass(frozen=True)
class Cutout:
    """An object: its name, its category, its picture, and its annotation where it has one."""

    name: str
    category: str
    image: Path
    annotation: Any = None


class CutoutSet:
    """
    Objects by category; read(item) gives RGBA uint8 [h, w, 4], alpha 255 on the object.

    categories, exclude: names to keep or to leave out; None keeps all.
    """

    items: tuple[Cutout, ...]
    kind = 'cutouts'

    def _choose(self, items: Iterable[Cutout], categories: Sequence[str] | None,
                exclude: Sequence[str]) -> tuple[Cutout, ...]:
        items = tuple(items)
        known = sorted({item.category for item in items})
        for name in categories or ():
            if name not in known:
                raise DataError(f'no cut-outs of category {name!r}; there are '
                                f'{", ".join(known) or "none"}')
        return tuple(item for item in items if item.category not in exclude
                     and (categories is None or item.category in categories))

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the categories that occur, sorted."""
        return tuple(sorted({item.category for item in self.items}))

    def __len__(self) -> int:
        return len(self.items)

    def read(self, item: Cutout) -> np.ndarray:
        """Read a cut-out as RGBA uint8 [h, w, 4]; raises DataError when it cannot be."""
        image = cv2.imread(str(item.image), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8:
            raise DataError(f'{item.image} must be an 8-bit RGBA picture')
        return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)


class CutoutFolder(CutoutSet):
    """
    A folder of RGBA PNG, by default objects/open below the data folder.

    The category is that of index.csv (columns file and category) in the folder or the one above,
    else the last part of the file name, between underscores, that has no digit.
    """

    name, title = 'cutouts', 'cut-outs'

    def __init__(self, root: str | Path | None = None,
                 categories: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> None:
        folder = data_root(root)
        if (folder / 'objects' / 'open').is_dir():
            folder = folder / 'objects' / 'open'
        files = sorted(folder.glob('*.png'))
        if not files:
            raise DataError(f'{folder} holds no cut-outs; it needs RGBA pictures <name>.png, '
                            'and may have index.csv with the columns file and category')
        known = self._index(folder)
        self.folder = folder
        self.items = self._choose(
            (Cutout(f.stem, known.get(f.name) or self._category(f.stem), f) for f in files),
            categories, exclude)

    @staticmethod
    def _index(folder: Path) -> dict[str, str]:
        for path in (folder / 'index.csv', folder.parent / 'index.csv'):
            if path.is_file():
                with path.open(newline='') as lines:
                    return {Path(row['file']).name: row['category']
                            for row in csv.DictReader(lines)}
        return {}

    @staticmethod
    def _category(stem: str) -> str:
        words = [w for w in stem.split('_') if not any(c.isdigit() for c in w)]
        return words[-1].replace('-', ' ') if words else stem


def decode_rle(counts: str | bytes | Sequence[int], size: Sequence[int]) -> np.ndarray:
    """
    Decode a run-length mask of COCO: bool [height, width].

    counts: run lengths of zeros and ones in turn, down the columns, or their compressed string
    (5 bits a character from ASCII 48 on, bit 5 continues, sign extended; from the fourth run on
    the difference to the run before the last).  size: (height, width).
    Raises DataError when the runs do not fill the picture.
    """
    if isinstance(counts, (str, bytes)):
        text = counts.encode() if isinstance(counts, str) else counts
        runs: list[int] = []
        value = shift = 0
        for character in text:
            digit = character - 48
            value |= (digit & 31) << shift
            shift += 5
            if not digit & 32:
                if digit & 16:
                    value -= 1 << shift
                runs.append(value + (runs[-2] if len(runs) > 2 else 0))
                value = shift = 0
    else:
        runs = list(counts)
    height, width = size
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise DataError(f'a run-length mask does not fill its {width}x{height} picture')
    ones = np.arange(len(runs)) % 2 == 1
    return np.repeat(ones, runs).reshape(width, height).T


class CocoCutouts(CutoutSet):
    """
    Instances of COCO cut out along their masks, by category.

    split: train2017 or val2017.  exclude: categories left out, by default those of street
    scenes.  Crowds and objects below min_area pixels are left out.
    """

    name, title = 'coco', 'COCO'
    splits = ('train2017', 'val2017')

    def __init__(self, split: str = 'val2017', root: str | Path | None = None,
                 categories: Sequence[str] | None = None,
                 exclude: Sequence[str] = COCO_ROAD_CATEGORIES, min_area: int = 1024) -> None:
        base = data_root(root)
        candidates = [base / 'coco', base / 'COCO', base]
        self.folder = next((c for c in candidates if (c / 'annotations').is_dir()), base)
        listing = self.folder / 'annotations' / f'instances_{split}.json'
        pictures = next((c for c in (self.folder / split, self.folder / 'images' / split)
                         if c.is_dir()), None)
        if not listing.is_file() or pictures is None:
            raise DataError(f'{self.folder} holds no COCO {split}; it needs annotations/'
                            f'instances_{split}.json and {split}/<number>.jpg')
        spec = json.loads(listing.read_text())
        names = {c['id']: c['name'] for c in spec['categories']}
        images = {i['id']: i for i in spec['images']}
        wanted = (a for a in spec['annotations']
                  if not a.get('iscrowd') and a['area'] >= min_area)
        self.items = self._choose(
            (Cutout(f'{Path(images[a["image_id"]]["file_name"]).stem}_{a["id"]}',
                    names[a['category_id']], pictures / images[a['image_id']]['file_name'],
                    (a['segmentation'], a['bbox'])) for a in wanted), categories, exclude)

    def read(self, item: Cutout) -> np.ndarray:
        """Cut an object out of its picture: RGBA uint8 [h, w, 4] of its box."""
        image = read_image(item.image)
        height, width = image.shape[:2]
        segmentation, (x, y, w, h) = item.annotation
        if isinstance(segmentation, dict):
            alpha = decode_rle(segmentation['counts'], segmentation['size']).astype(np.uint8)
            if alpha.shape != (height, width):
                raise DataError(f'the mask of {item.name} does not fit {item.image}')
        else:
            alpha = np.zeros((height, width), np.uint8)
            for polygon in segmentation:
                # One polygon at a time: parts may overlap, and fillPoly fills by parity.
                points = np.array(polygon, np.float64).reshape(-1, 1, 2)
                cv2.fillPoly(alpha, [np.floor(points * 16 - 7.5).astype(np.int32)], 1, shift=4)
        left, top = max(0, int(np.floor(x))), max(0, int(np.floor(y)))
        right, bottom = int(np.ceil(x + w)), int(np.ceil(y + h))
        box = np.s_[top:max(bottom, top + 1), left:max(right, left + 1)]
        return np.dstack([image[box], alpha[box] * np.uint8(255)])
