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
"""Where data sets lie, and what a sample is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import json
import os
from pathlib import Path

import cv2
import numpy as np

VOID = 255


class DataError(RuntimeError):
    """Data that is missing or unreadable; the message says how the folder must look."""


@dataclass(frozen=True)
class Item:
    """One labelled picture on disk; label ids as stored, 255 is void."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class ClassSpec:
    """A class of a data set: name and display colour (RGB)."""

    name: str
    color: tuple[int, int, int]


def data_root(root: str | Path | None = None) -> Path:
    """
    Find the folder that holds the data sets.

    Order: the argument, the environment variable OWSEG_DATA, `../shared/data` beside the project.
    Raises DataError when there is none.
    """
    candidates = [Path(root)] if root else []
    if not candidates and 'OWSEG_DATA' in os.environ:
        candidates = [Path(os.environ['OWSEG_DATA'])]
    if not candidates:
        candidates = [Path(__file__).resolve().parents[3] / 'shared' / 'data']
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise DataError(f'no data folder at {candidates[0]}; set OWSEG_DATA to the folder that holds '
                    'camvid/, road_anomaly/, ...')


def read_image(path: Path) -> np.ndarray:
    """Read a picture as RGB uint8 [H, W, 3]; raises DataError when it cannot be decoded."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f'cannot read the image {path}')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: Path) -> np.ndarray:
    """Read a single-channel PNG of ids as uint8 [H, W]; raises DataError otherwise."""
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if label is None or label.ndim != 2 or label.dtype != np.uint8:
        raise DataError(f'{path} must be a single-channel 8-bit PNG of class ids')
    return label


class CamVid:
    """
    CamVid in the SegNet split, 11 classes, 480x360.

    Folder: camvid/{classes.json, train.txt, val.txt, images/<name>.jpg, labels/<name>.png}.
    Raises DataError when something of this is missing.
    """

    def __init__(self, split: str, root: str | Path | None = None) -> None:
        self.folder = data_root(root) / 'camvid'
        listing = self.folder / f'{split}.txt'
        if not listing.is_file():
            raise DataError(f'{listing} is missing; CamVid needs camvid/ with classes.json, '
                            'train.txt, val.txt, images/<name>.jpg and labels/<name>.png')
        spec = json.loads((self.folder / 'classes.json').read_text())
        self.classes = tuple(
            ClassSpec(c['name'], tuple(c['colour']))
            for c in sorted(spec['classes'], key=lambda c: c['id']))
        stems = [Path(line).stem for line in listing.read_text().split()]
        self.items = tuple(
            Item(stem, self.folder / 'images' / f'{stem}.jpg',
                 self.folder / 'labels' / f'{stem}.png') for stem in stems)
        missing = [i.name for i in self.items if not (i.image.is_file() and i.label.is_file())]
        if missing:
            raise DataError(f'{self.folder}: {len(missing)} of {len(self.items)} pictures of '
                            f'{split} lack an image or a label, first {missing[0]}')


class RoadAnomaly:
    """
    RoadAnomaly (EPFL): road pictures with unusual objects; mask 1 is anomaly, 255 void.

    Folder: road_anomaly/{images/<name>.jpg, masks/<name>.png}.
    Raises DataError when something of this is missing.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.folder = data_root(root) / 'road_anomaly'
        images = sorted((self.folder / 'images').glob('*'))
        if not images:
            raise DataError(f'{self.folder}/images holds no pictures; RoadAnomaly needs '
                            'images/<name>.jpg and masks/<name>.png')
        self.items = tuple(
            Item(p.stem, p, self.folder / 'masks' / f'{p.stem}.png') for p in images)
        missing = [i.name for i in self.items if not i.label.is_file()]
        if missing:
            raise DataError(f'{self.folder}/masks lacks {missing[0]}.png')


def read_items(items: Sequence[Item]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read (RGB image, label) pairs; raises DataError for what cannot be read."""
    return [(read_image(item.image), read_label(item.label)) for item in items]
