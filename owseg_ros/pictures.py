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
"""The pictures of a stream: a four-panel frame with its legend, and a video file of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from owseg_ros import render
from owseg_ros.bundle import UNKNOWN_ID
from owseg_ros.errors import OwsegError

PANELS = ('input', 'semantic', 'anomaly score', 'overlay')
QUERY_PANELS = ('queries', 'query score')
TITLE_HEIGHT = 44
PANEL_WIDTH = 480
RBA_RANGE = (render.UNKNOWN_HEAT_LOW, render.UNKNOWN_HEAT_HIGH)
_MARGIN = 6


class VideoError(OwsegError):
    """A video that cannot be written; the message says what to do."""


@dataclass(frozen=True)
class QueryPicture:
    """
    What was found of the queries of a frame, for pictures.

    mask: uint8, index of the winning query, 255 for none; score: float32 in 0..1; both of one
    size. colors: RGB of each query.
    """

    mask: np.ndarray
    score: np.ndarray
    colors: Sequence[tuple[int, int, int]]

    def panels(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pictures of QUERY_PANELS, uint8 [H, W, 3] each, for an image of that size."""
        heat = render.anomaly_heat(self.score, 0.0, 1.0)
        if heat.shape != image.shape:
            heat = cv2.resize(heat, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return render.query_overlay(image, self.mask, self.colors), heat


def panels(image: np.ndarray, semantic: np.ndarray, score: np.ndarray, mask: np.ndarray,
           palette: np.ndarray, score_range: tuple[float, float] = RBA_RANGE,
           ) -> tuple[np.ndarray, ...]:
    """
    Return the pictures of PANELS, each uint8 [H, W, 3] RGB.

    image: uint8 [H, W, 3] RGB; semantic: uint8 ids; score: float32 anomaly score; mask: uint8,
    non-zero where anomalous; palette: uint8 [256, 3]; score_range: scores that are black and
    pale yellow.  The maps may be of another size.
    """
    color = render.colorize(semantic, palette)
    height, width = image.shape[:2]
    if color.shape != image.shape:
        color = cv2.resize(color, (width, height), interpolation=cv2.INTER_NEAREST)
    heat = render.anomaly_heat(score, *score_range)
    if heat.shape != image.shape:
        heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    return image, color, heat, render.overlay(image, color, 0.45, mask)


def legend_of(classes: list[tuple[str, tuple[int, int, int]]], palette: np.ndarray,
              width: int) -> np.ndarray:
    """Return the legend of (name, colour) pairs and of unknown objects, uint8 [h, width, 3]."""
    unknown = ('unknown object', tuple(int(v) for v in palette[UNKNOWN_ID]))
    return render.legend([*classes, unknown], width)


def query_legend(queries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> np.ndarray:
    """Return the legend of queries, (name, colour) each, uint8 [h, width, 3]."""
    return render.legend([(f'"{name}"', color) for name, color in queries], width)


def panel_size(height: int, width: int) -> tuple[int, int]:
    """Return (width, height) of the panels for frames of a size, in pixels."""
    # No video is as high as the frames of a line camera may be.
    return PANEL_WIDTH, min(2 * PANEL_WIDTH, max(2, round(PANEL_WIDTH * height / width)))


class FrameComposer:
    """
    Puts the panels of a frame, two in a column, under a title and above a legend.

    width, height: size of a panel in pixels; classes, queries: (name, RGB) of the known classes
    and, where frames show them, of the queries.
    """

    def __init__(self, width: int, height: int, palette: np.ndarray,
                 classes: list[tuple[str, tuple[int, int, int]]],
                 queries: Sequence[tuple[str, tuple[int, int, int]]] = ()) -> None:
        self.panel = (width, height)
        self.palette = palette
        columns = 3 if queries else 2
        total = columns * width + (columns + 1) * _MARGIN
        parts = [legend_of(classes, palette, total)]
        if queries:
            parts.append(query_legend(queries, total))
        self._legend = np.concatenate(parts)
        rows = TITLE_HEIGHT + 2 * (height + _MARGIN) + self._legend.shape[0]
        # Video codecs want even sizes.
        self.size = (total + total % 2, rows + rows % 2)

    def compose(self, image: np.ndarray, semantic: np.ndarray, score: np.ndarray,
                mask: np.ndarray, title: str,
                score_range: tuple[float, float] = RBA_RANGE,
                queries: QueryPicture | None = None,
                names: Sequence[tuple[Sequence[float], str]] = ()) -> np.ndarray:
        """
        Return the picture, uint8 [size[1], size[0], 3] RGB; arguments as for panels.

        queries: of this frame, where the composer was made for some; names: of regions, written
        into the overlay, see render.draw_names.
        """
        width, height = self.panel
        canvas = render.blank(*self.size)
        render.put_text(canvas, title, 2 * _MARGIN, 13, 16, max_width=self.size[0] - 24)
        shrunk = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA
                            if image.shape[1] > width else cv2.INTER_LINEAR)
        # The other panels are drawn at the size in which they are shown.
        semantic = cv2.resize(semantic, (width, height), interpolation=cv2.INTER_NEAREST)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        score = cv2.resize(score, (width, height), interpolation=cv2.INTER_LINEAR)
        places = [(0, 0), (1, 0), (0, 1), (1, 1)]
        pictures = [*zip(PANELS, panels(shrunk, semantic, score, mask, self.palette,
                                        score_range))]
        render.draw_names(pictures[-1][1], names)
        if queries is not None:
            places += [(2, 0), (2, 1)]
            pictures += zip(QUERY_PANELS, queries.panels(shrunk))
        for (name, picture), (column, row) in zip(pictures, places):
            x = _MARGIN + column * (width + _MARGIN)
            y = TITLE_HEIGHT + row * (height + _MARGIN)
            canvas[y:y + height, x:x + width] = picture
            self._tag(canvas, name, x, y)
        top = TITLE_HEIGHT + 2 * (height + _MARGIN)
        canvas[top:top + self._legend.shape[0], :self._legend.shape[1]] = self._legend
        return canvas

    @staticmethod
    def _tag(canvas: np.ndarray, text: str, x: int, y: int) -> None:
        width, height = render.text_size(text, 12)
        corner = canvas[y:y + height + 12, x:x + width + 16]
        corner[...] = corner // 3
        render.put_text(canvas, text, x + 8, y + 5, 12)


MAX_VIDEO_SIDE = 8191
"""Pixels; MPEG-4 has 13 bits for a side."""


class VideoWriter:
    """
    An MP4 file with MPEG-4 video, which OpenCV encodes everywhere without another library.

    path: of the file; fps: frames a second; size: (width, height) in even pixels, at most
    MAX_VIDEO_SIDE each.  Raises VideoError when it is larger or the file cannot be opened.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int]) -> None:
        self.path, self.size, self.frames = Path(path), size, 0
        if max(size) > MAX_VIDEO_SIDE:
            raise VideoError('the video would have {}x{} pixels, and MPEG-4 takes {} a side; crop '
                             'what is so long and narrow'.format(*size, MAX_VIDEO_SIDE))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = cv2.VideoWriter(
            str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)
        if not self._writer.isOpened():
            raise VideoError(f'OpenCV cannot write MPEG-4 to {path}; check that the folder is '
                             'writable, or install opencv-python-headless')

    def write(self, rgb: np.ndarray) -> None:
        """Append a frame, uint8 [height, width, 3] RGB; raises VideoError for another size."""
        if rgb.shape != (self.size[1], self.size[0], 3):
            raise VideoError(f'a frame of {rgb.shape} does not fit a video of {self.size}')
        self._writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Finish the file; raises VideoError when nothing was written to it."""
        self._writer.release()
        if self.frames and not (self.path.is_file() and self.path.stat().st_size):
            raise VideoError(f'{self.path} is empty although {self.frames} frames were written; '
                             'is the disk full?')
