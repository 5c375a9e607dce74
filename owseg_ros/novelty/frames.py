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
What can be taught: a region of a frame that was seen lately, found by where somebody points.

Coordinates are pixels of the camera image. A pixel means the anomalous region that it lies in;
where there is none, the network's mask that claims it, which among those that are above one half
there is the one that is an object most surely. A box means the anomalous pixels in it, whatever
number of pieces they are in; where these are less than a tenth of it, the mask that it fits best,
cut to the box. A number means the anomalous region that has it in `anomaly/regions`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
import threading
from typing import Optional, Union

import numpy as np
from owseg_ros.errors import shown
from owseg_ros.language.regions import find_regions, Region
from owseg_ros.novelty.arrays import NoveltyError
from owseg_ros.novelty.region_features import region_features
from owseg_ros.readout.components import bounding_box

ANOMALY, MASK = 'anomaly', 'mask'

LEAST_CELLS = 4.0
"""Cells of the features that a shot must cover: the mean of fewer is of its surroundings."""

LEAST_BOX_SHARE = 0.1
"""Share of a box that must be anomalous for the box to mean what is anomalous in it."""

SAME_STAMP_NS = 1_000_000
"""Stamps that differ less are one: people round them."""


@dataclass(frozen=True)
class Pixel:
    """A pixel of the camera image."""

    x: float
    y: float


@dataclass(frozen=True)
class Box:
    """A box in pixels of the camera image; x1 and y1 are the first column and row outside."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class RegionNumber:
    """An anomalous region by its id in `anomaly/regions`: 0 is the largest of its frame."""

    number: int


Place = Union[Pixel, Box, RegionNumber]


@dataclass(frozen=True, eq=False)
class TeachableFrame:
    """
    A frame in which something can be pointed at.

    image_size, size: (height, width) of the camera image and of the maps. anomalous: uint8
    [ceil(H W / 8)], bits of the anomaly mask. objectness: float32 [N], how surely each mask of
    the network is an object. masks: uint8 [N, ceil(h w / 8)], bits of their cells, set where they
    are above one half. pixel_features: float32 [C, h, w].
    """

    image_size: tuple[int, int]
    size: tuple[int, int]
    anomalous: np.ndarray
    objectness: np.ndarray
    masks: np.ndarray
    pixel_features: np.ndarray

    @classmethod
    def of(cls, image_size: tuple[int, int], anomaly_mask: np.ndarray, objectness: np.ndarray,
           masks: np.ndarray, pixel_features: np.ndarray) -> TeachableFrame:
        """
        Return a frame.

        anomaly_mask: uint8 [H, W] of the maps, non-zero is anomalous; it may be overwritten
        afterwards. masks: what mask_bits returned. The other arguments are kept as the fields.
        """
        return cls(image_size, anomaly_mask.shape, np.packbits(anomaly_mask), objectness, masks,
                   pixel_features)

    @property
    def regions(self) -> tuple[Region, ...]:
        """Return the anomalous regions in pixels of the maps, found anew: few frames are asked."""
        inside = np.unpackbits(self.anomalous, count=self.size[0] * self.size[1])
        return find_regions(inside.reshape(self.size))

    @property
    def nbytes(self) -> int:
        """Return the memory that it takes, but for a few hundred bytes."""
        return (self.pixel_features.nbytes + self.masks.nbytes + self.objectness.nbytes
                + self.anomalous.nbytes)

    def pick(self, place: Place) -> tuple[Region, str]:
        """
        Return the region that a place means, in pixels of the maps, and whether ANOMALY or MASK.

        Raises NoveltyError: it is outside the image, nothing is there, or too little of it.
        """
        if isinstance(place, RegionNumber):
            found = self._by_number(place), ANOMALY
        elif isinstance(place, Pixel):
            found = self._at(place)
        else:
            found = self._in(place)
        self._check_area(found[0])
        return found

    def features(self, region: Region) -> np.ndarray:
        """
        Return the mean pixel features of a region, float32 [1, C].

        Raises NoveltyError where the network made no finite ones.
        """
        found = region_features([region], self.pixel_features, self.size)
        if not np.isfinite(found).all():
            raise NoveltyError('the network produced non-finite pixel features there; check the '
                               'precision of the engine (FP16 overflows where FP32 does not)')
        return found

    def image_box(self, region: Region) -> tuple[int, int, int, int]:
        """Return the box of a region in pixels of the camera image."""
        return tuple(round(value * image / size) for value, image, size in zip(
            region.box, self.image_size[::-1] * 2, self.size[::-1] * 2))

    def _by_number(self, place: RegionNumber) -> Region:
        regions = self.regions
        if not 0 <= place.number < len(regions):
            there = f'it has {len(regions)}, from 0 on' if regions else 'it has none'
            raise NoveltyError(f'the frame has no anomalous region {place.number}: {there}')
        return regions[place.number]

    def _at(self, place: Pixel) -> tuple[Region, str]:
        height, width = self.image_size
        if not (0 <= place.x < width and 0 <= place.y < height):
            raise NoveltyError(f'the pixel {place.x:g}, {place.y:g} is not in the image, which '
                               f'has {width}x{height}')
        x, y = _scaled(int(place.x), width, self.size[1]), _scaled(
            int(place.y), height, self.size[0])
        for region in self.regions:
            left, top, right, bottom = region.box
            if left <= x < right and top <= y < bottom and region.inside[y - top, x - left]:
                return region, ANOMALY
        rows, columns = self._cells
        cell = int(rows[y]) * self.pixel_features.shape[2] + int(columns[x])
        claims = self.masks[:, cell // 8] >> (7 - cell % 8) & 1
        if not claims.any():
            raise NoveltyError(f'nothing is at {place.x:g}, {place.y:g}: no anomalous region and '
                               'no mask of the network; draw a box around it, or wait for a '
                               'frame in which it is seen')
        best = int(np.where(claims, self.objectness, -np.inf).argmax())
        return _region(self._mask(best)), MASK

    def _in(self, place: Box) -> tuple[Region, str]:
        height, width = self.image_size
        edges = (max(place.x0, 0), max(place.y0, 0), min(place.x1, width), min(place.y1, height))
        if edges[0] >= edges[2] or edges[1] >= edges[3]:
            raise NoveltyError(
                f'the box {place.x0:g}, {place.y0:g}, {place.x1:g}, {place.y1:g} has nothing of '
                f'the image, which has {width}x{height}; a box is left, top, right, bottom')
        scale = self.size[1] / width, self.size[0] / height
        left, top = (int(edge * factor) for edge, factor in zip(edges[:2], scale))
        right, bottom = (int(np.ceil(edge * factor)) for edge, factor in zip(edges[2:], scale))
        window = np.s_[top:bottom, left:right]
        inside = np.zeros(self.size, bool)
        for region in self.regions:
            inside[region.window] |= region.inside
        chosen, kind = inside[window], ANOMALY
        if np.count_nonzero(chosen) < LEAST_BOX_SHARE * chosen.size:
            chosen, kind = self._fitting_mask(window), MASK
        if not chosen.any():
            raise NoveltyError('nothing is in the box: no anomalous region and no mask of the '
                               'network; wait for a frame in which it is seen')
        whole = np.zeros(self.size, bool)
        whole[window] = chosen
        return _region(whole), kind

    def _fitting_mask(self, window: tuple[slice, slice]) -> np.ndarray:
        """Return bool [h', w'] of the box: the mask of the largest intersection over union."""
        best, found = 0.0, np.zeros((1, 1), bool)
        for index in range(len(self.masks)):
            mask = self._mask(index)
            common = np.count_nonzero(mask[window])
            if not common:
                continue
            iou = common / (np.count_nonzero(mask) + mask[window].size - common)
            if iou > best:
                best, found = iou, mask[window]
        return found

    @property
    def _cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the row and the column of the cell that each row and column of the maps is in."""
        return tuple(((np.arange(pixels) + 0.5) * (cells / pixels)).astype(np.intp)
                     for pixels, cells in zip(self.size, self.pixel_features.shape[1:]))

    def _mask(self, index: int) -> np.ndarray:
        """Return where a mask of the network is, bool [H, W] of the maps."""
        cells = self.pixel_features.shape[1:]
        inside = np.unpackbits(self.masks[index], count=cells[0] * cells[1]).view(bool)
        rows, columns = self._cells
        return inside.reshape(cells)[rows[:, None], columns]

    def _check_area(self, region: Region) -> None:
        pixels = self.size[0] * self.size[1] / np.prod(self.pixel_features.shape[1:])
        if region.area < LEAST_CELLS * pixels:
            scale = self.image_size[0] * self.image_size[1] / (self.size[0] * self.size[1])
            raise NoveltyError(
                f'what is there is too small: {region.area * scale:.0f} pixels of the image, and '
                f'at least {LEAST_CELLS * pixels * scale:.0f} make a shot; go nearer')


@dataclass(frozen=True)
class RecentFrame:
    """A frame that is kept: its camera, its stamp in ns, and what can be pointed at."""

    camera: str
    stamp: int
    frame: TeachableFrame


def mask_bits(mask_logits: np.ndarray) -> np.ndarray:
    """Return the masks of a TeachableFrame for mask logits, float32 [N, h, w]."""
    return np.packbits((mask_logits > 0).reshape(len(mask_logits), -1), axis=1)


class RecentFrames:
    """
    The newest frames of all cameras, as many as fit; safe to use from several threads.

    most_bytes: memory for them; the newest of all is kept also where it takes more, unless it
    is 0.
    """

    def __init__(self, most_bytes: int = 0):
        self._lock = threading.Lock()
        self._most = most_bytes
        self._kept: deque[RecentFrame] = deque()
        self._bytes = 0

    @property
    def wanted(self) -> bool:
        """Return whether frames are kept at all."""
        return self._most > 0

    @property
    def nbytes(self) -> int:
        """Return the memory of what is kept."""
        return self._bytes

    def limit(self, most_bytes: int) -> None:
        """Keep as many as fit into other memory from now on."""
        with self._lock:
            self._most = most_bytes
            self._trim()

    def add(self, camera: str, stamp: int, frame: TeachableFrame) -> None:
        """Keep a frame; stamp: in ns. Never waits for whoever looks at the others."""
        with self._lock:
            self._kept.append(RecentFrame(camera, stamp, frame))
            self._bytes += frame.nbytes
            self._trim()

    def clear(self) -> None:
        """Forget all frames."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def stamps(self) -> dict[str, tuple[int, int, int]]:
        """Return for each camera how many frames there are, and the first and last stamp (ns)."""
        found: dict[str, tuple[int, int, int]] = {}
        for kept in self._snapshot():
            count, first, _ = found.get(kept.camera, (0, kept.stamp, 0))
            found[kept.camera] = count + 1, first, kept.stamp
        return found

    def find(self, camera: Optional[str] = None, stamp: Optional[int] = None) -> RecentFrame:
        """
        Return the frame with a stamp (ns), or the newest; of a camera, or of the only one.

        Raises NoveltyError: there is none, it is too old, or the camera must be named.
        """
        kept = self._snapshot()
        if not kept:
            raise NoveltyError(
                'no frame is kept: frames are seen while the node is active, images come, and '
                'somebody subscribes to a result' if self._most else
                'no frame is kept: the parameter teach_memory is 0')
        cameras = list(dict.fromkeys(entry.camera for entry in kept))
        if camera is not None:
            kept = [entry for entry in kept if entry.camera == camera]
            if not kept:
                raise NoveltyError(f'no frame of a camera {shown(camera)!r} is kept; there are '
                                   f'{_listed(cameras)}')
        if stamp is not None:
            kept = self._with_stamp(kept, stamp)
        if len({entry.camera for entry in kept}) > 1:
            raise NoveltyError(f'say which camera: {_listed(cameras)}')
        return kept[-1]

    def _with_stamp(self, kept: Sequence[RecentFrame], stamp: int) -> list[RecentFrame]:
        found = [entry for entry in kept if abs(entry.stamp - stamp) < SAME_STAMP_NS]
        if found:
            return found
        first = min(entry.stamp for entry in kept)
        nearest = min(kept, key=lambda entry: abs(entry.stamp - stamp)).stamp
        why = ('the frame is too old' if stamp < first else 'no frame has this stamp')
        raise NoveltyError(
            f'{why}: {seconds_text(stamp)}; there are {len(kept)}, from {seconds_text(first)} to '
            f'{seconds_text(max(entry.stamp for entry in kept))}, the nearest '
            f'{seconds_text(nearest)}; the parameter teach_memory keeps more')

    def _snapshot(self) -> list[RecentFrame]:
        with self._lock:
            return list(self._kept)

    def _trim(self) -> None:
        while self._kept and self._bytes > self._most and (len(self._kept) > 1 or not self._most):
            self._bytes -= self._kept.popleft().frame.nbytes


def seconds_text(stamp: int) -> str:
    """Return a stamp in ns as seconds with nine decimals."""
    sign = '-' if stamp < 0 else ''
    return f'{sign}{abs(stamp) // 10 ** 9}.{abs(stamp) % 10 ** 9:09d}'


def _listed(cameras: Sequence[str]) -> str:
    return ', '.join(camera or "'' (the node's own)" for camera in cameras)


def _scaled(pixel: int, of: int, to: int) -> int:
    """Return the pixel of another size that the middle of a pixel falls in."""
    return min(int((pixel + 0.5) * to / of), to - 1)


def _region(inside: np.ndarray) -> Region:
    """Return a region for bool [H, W] that is somewhere true."""
    left, top, width, height = bounding_box(inside.view(np.uint8))
    cut = np.ascontiguousarray(inside[top:top + height, left:left + width])
    return Region(left, top, cut, int(np.count_nonzero(cut)))
