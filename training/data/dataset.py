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
"""One interface for every data set: where it lies, its pictures, its classes, its labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
import copy
from dataclasses import dataclass
import json
import os
from pathlib import Path, PurePosixPath
from typing import ClassVar

import cv2
import numpy as np
from owseg_training.data.errors import DataError
from owseg_training.data.label_sets import class_map, ClassMap, ClassSpec, label_set, label_set_of
from PIL import Image

VOID = 255


@dataclass(frozen=True)
class Item:
    """One labelled picture on disk; label ids as stored, 255 is void."""

    name: str
    image: Path
    label: Path


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
    """
    Read a PNG of ids as uint8 [H, W], of one channel or with a palette; else raise DataError.

    The ids of a palette are its indices. Those of a palette of nothing but greys are the greys:
    programs that make files smaller write it in place of a single channel.
    """
    label = _read_ids(path)
    if label is None or label.ndim != 2 or label.dtype != np.uint8:
        raise DataError(f'{path} must be a PNG of class ids, with a single channel of 8 bit or a '
                        'palette')
    return label


def _read_ids(path: Path) -> np.ndarray | None:
    """Read a picture as it is stored, one with a palette as ids; None where that fails."""
    try:
        with Image.open(path) as picture:
            if picture.mode != 'P':
                return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            # OpenCV would give the colours of the palette.
            ids, colors = np.array(picture), np.zeros((256, 3), np.uint8)
            stored = np.reshape(picture.getpalette('RGB'), (-1, 3))
    # Pillow raises the last two for some files that are damaged.
    except (OSError, SyntaxError, ValueError):
        return None
    colors[:len(stored)] = stored
    return colors[ids, 0] if (colors == colors[:, :1]).all() else ids


Decoder = Callable[[Path], np.ndarray]


def read_grey(path: Path) -> np.ndarray:
    """Read ids as uint8 [H, W] as read_label, also from three channels that are equal."""
    label = _read_ids(path)
    if label is not None and label.ndim == 3 and label.dtype == np.uint8:
        if (label[..., 0] == label[..., 1]).all() and (label[..., 1] == label[..., 2]).all():
            return np.ascontiguousarray(label[..., 0])
    return read_label(path)


def table_decoder(ids: dict[int, int]) -> Decoder:
    """Return a decoder that renames stored ids; ids that are not listed are void."""
    table = np.full(256, VOID, np.uint8)
    for stored, wanted in ids.items():
        table[stored] = wanted
    return lambda path: table[read_grey(path)]


def color_decoder(classes: tuple[ClassSpec, ...]) -> Decoder:
    """Return a decoder of colour pictures; colours of no class are void."""
    keys = np.array([(r << 16) | (g << 8) | b for r, g, b in (c.color for c in classes)])
    order = np.argsort(keys)

    def decode(path: Path) -> np.ndarray:
        color = read_image(path).astype(np.int64)
        key = (color[..., 0] << 16) | (color[..., 1] << 8) | color[..., 2]
        place = np.minimum(np.searchsorted(keys[order], key), keys.size - 1)
        return np.where(keys[order][place] == key, order[place], VOID).astype(np.uint8)

    return decode


def beside(pattern: str) -> Callable[[str], str]:
    """Return a function from a relative path to the pattern with its {stem} and {parent}."""
    def name(path: str) -> str:
        pure = PurePosixPath(path)
        return pattern.format(stem=pure.stem, parent=pure.parent.as_posix())
    return name


def swapped(*swaps: tuple[str, str]) -> Callable[[str], str]:
    """Return a function that replaces parts of a relative path, each once."""
    def name(path: str) -> str:
        for old, new in swaps:
            path = path.replace(old, new, 1)
        return path
    return name


@dataclass(frozen=True)
class Layout:
    """
    One way in which a data set lies on disk, relative to its folder.

    images: glob of the pictures, with {split}; label: from a picture's relative path to its
    label's; decode: reads a label file to ids.
    by_label: the other way round, images is a glob of the labels and label leads to the picture.
    listing: text file that names the pictures of a split, one a line; images is then the path of
    one picture with {name}.
    keep: tells by stem and split whether a picture belongs to the split.
    partial: pictures without a label are left out, as test pictures of benchmarks are.
    """

    images: str
    label: Callable[[str], str]
    decode: Decoder = read_label
    by_label: bool = False
    listing: str | None = None
    keep: Callable[[str, str], bool] | None = None
    partial: bool = False

    def pairs(self, folder: Path, split: str) -> Iterator[tuple[Path, Path]]:
        """Find (picture, label) paths of a split; none where this layout does not apply."""
        for found in self._found(folder, split):
            if self.keep is None or self.keep(found.stem, split):
                other = folder / self.label(found.relative_to(folder).as_posix())
                yield (other, found) if self.by_label else (found, other)

    def _found(self, folder: Path, split: str) -> Iterator[Path]:
        if self.listing is None:
            yield from sorted(folder.glob(self.images.format(split=split)))
            return
        listing = folder / self.listing.format(split=split)
        if listing.is_file():
            for line in listing.read_text().split():
                yield folder / self.images.format(split=split, name=Path(line).stem)


class DataSet:
    """
    A split of a data set: items, classes, and labels as ids of these classes (255 is void).

    Subclasses say where it lies and how labels are stored.  root is the folder that holds the
    data sets, or the data set's own folder; None looks at OWSEG_DATA, then ../shared/data.
    Raises DataError, which says what is missing and how the folder must look.

    kind: 'classes', or 'anomaly' with labels 0 known, 1 anomaly, 255 void.
    size: (width, height) of its pictures, None where they differ.  track: the SegmentMeIfYouCan
    track whose minimum component sizes fit an anomaly set.
    """

    name: ClassVar[str] = ''
    title: ClassVar[str] = ''
    kind: ClassVar[str] = 'classes'
    splits: tuple[str, ...] = ('train', 'val')
    default_split: ClassVar[str] = 'val'
    folders: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[str] = ''
    label_set_name: ClassVar[str | None] = None
    size: ClassVar[tuple[int, int] | None] = None
    track: str = 'anomaly'
    copy_number: int = 1

    def __init__(self, split: str | None = None, root: str | Path | None = None) -> None:
        self.split = split or self.default_split
        if self.split not in self.splits:
            raise DataError(f'{self.title} has no split {self.split!r}; it has '
                            f'{", ".join(self.splits)}')
        self.folder, self.layout = self._find(data_root(root))
        self.classes = self._classes()
        self.items = self._items()
        self._map: ClassMap | None = None

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Return the layouts on disk that are understood, best first."""
        raise AttributeError(f'{type(self).__name__} must define layouts')

    @property
    def key(self) -> str:
        """Return a name for tables and files: the set, and the split where it has several."""
        name = self.name if len(self.splits) == 1 else f'{self.name}_{self.split}'
        return name if self.copy_number == 1 else f'{name}_{self.copy_number}'

    @property
    def label_set(self) -> str | None:
        """Return the name of the label set whose classes these are, None where it is its own."""
        return label_set_of([c.name for c in self.classes])

    def _find(self, root: Path) -> tuple[Path, Layout]:
        """Return the set's folder and the layout that it has."""
        candidates = [root / name for name in self.folders if (root / name).is_dir()] + [root]
        lacking = None
        for folder in candidates:
            for layout in self.layouts:
                image, label = next(layout.pairs(folder, self.split), (None, None))
                if image is None:
                    continue
                if layout.partial or (image.is_file() and label.is_file()):
                    return folder, layout
                there, absent = (image, label) if image.is_file() else (label, image)
                lacking = lacking or (f'{folder}: {absent.relative_to(folder)} is missing, which '
                                      f'belongs to {there.name}')
        if lacking:
            raise DataError(f'{lacking}; {self._layout_text()}')
        raise DataError(f'{candidates[0]} holds no pictures of {self.title}, split '
                        f'{self.split}; {self._layout_text()}')

    def _layout_text(self) -> str:
        place = f' in {self.folders[0]}/' if self.folders else ''
        return f'{self.title} needs{place} {self.needs}'

    def _classes(self) -> tuple[ClassSpec, ...]:
        """Return the classes; those of classes.json where the folder has one."""
        listing = self.folder / 'classes.json'
        if listing.is_file():
            try:
                spec = json.loads(listing.read_text())
                return tuple(ClassSpec(c['name'], tuple(c['colour']))
                             for c in sorted(spec['classes'], key=lambda c: c['id']))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f'{listing} must be {{"classes": [{{"id": 0, "name": "...", '
                                f'"colour": [r, g, b]}}, ...]}}: {error!r}') from error
        if self.label_set_name is None:
            return ()
        return label_set(self.label_set_name)

    def _items(self) -> tuple[Item, ...]:
        pairs = list(self.layout.pairs(self.folder, self.split))
        if self.layout.partial:
            total, pairs = len(pairs), [pair for pair in pairs if pair[1].is_file()]
            if not pairs:
                raise DataError(f'{self.folder}: none of {total} pictures has a label; '
                                f'{self._layout_text()}')
        missing = [i.name for i, la in pairs if not (i.is_file() and la.is_file())]
        if missing:
            raise DataError(f'{self.folder}: {len(missing)} of {len(pairs)} pictures of '
                            f'{self.split} lack an image or a label, first {missing[0]}; '
                            f'{self._layout_text()}')
        stems = Counter(image.stem for image, _ in pairs)
        return tuple(
            Item(image.stem if stems[image.stem] == 1 else f'{image.parent.name}_{image.stem}',
                 image, label) for image, label in pairs)

    def read_label(self, item: Item) -> np.ndarray:
        """Read the label of an item as ids of `classes`, uint8 [H, W]; raises DataError."""
        return self.map_label(self.layout.decode(item.label))

    def map_label(self, label: np.ndarray) -> np.ndarray:
        """Bring ids of the set's own classes to ids of `classes`, uint8 of any shape."""
        return label if self._map is None else self._map(label)

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """
        Read (RGB uint8 [H, W, 3], label uint8 [h, w]).

        Raises DataError, also where one is no scaled version of the other, as when only the
        picture is turned by its EXIF orientation.
        """
        image, label = read_image(item.image), self.read_label(item)
        (height, width), (rows, columns) = image.shape[:2], label.shape
        if abs(width * rows - height * columns) > max(width, height):
            raise DataError(f'{item.image} is {width}x{height}, but its label {item.label} '
                            f'{columns}x{rows}, of another shape')
        return image, label

    def numbered(self, number: int) -> DataSet:
        """Return this set with a key of its own beside others of its name; 1: the name alone."""
        other = copy.copy(self)
        other.copy_number = number
        return other

    def mapped(self, target: str | ClassMap) -> DataSet:
        """
        Return this set with its labels in another label set; they are mapped when read.

        target: name of a label set, or a ClassMap.  Raises ClassMapError where there is none.
        """
        if self.kind != 'classes':
            raise DataError(f'{self.title} has no classes to map')
        if not isinstance(target, ClassMap):
            target = class_map(self.label_set or '', target)
        other = copy.copy(self)
        other._map = target if self._map is None else self._map.then(target)
        other.classes = target.target
        return other
