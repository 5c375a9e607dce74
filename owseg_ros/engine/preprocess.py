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
"""From frames to the network's input: resize, normalise, planar layout, in reused memory."""

from __future__ import annotations

from typing import Optional, Sequence

import cv2
import numpy as np
from owseg_ros.bundle import InputSpec
from owseg_ros.engine.stretch import plan, stretch
from owseg_ros.frame import Frame


def normalisation_tables(spec: InputSpec) -> np.ndarray:
    """Return float32 [3, 256], tables in RGB order: (value - mean) / std for each byte."""
    values = np.arange(256, dtype=np.float64)
    return np.stack([((values - mean) / std).astype(np.float32)
                     for mean, std in zip(spec.mean, spec.std)])


def resize(pixels: np.ndarray, height: int, width: int,
           out: Optional[np.ndarray] = None) -> np.ndarray:
    """
    Stretch uint8 [H, W, 3] to [height, width, 3]; the input itself if it has that size.

    out: a contiguous array of the new size to write to, else a new one.

    Averages areas where the image shrinks (cv2.INTER_AREA), interpolates bilinearly where it
    grows in either direction.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    return cv2.resize(pixels, (width, height), dst=out,
                      interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def pack(frames: Sequence[Frame], spec: InputSpec, out: Optional[np.ndarray] = None,
         tables: Optional[np.ndarray] = None,
         scratch: Optional[np.ndarray] = None) -> np.ndarray:
    """
    Return frames of any sizes as the network's input, float32 [B, 3, height, width] in RGB.

    out: a contiguous float32 array of that shape to write to, else a new one.
    tables: normalisation_tables(spec), to save making them again. scratch: uint8 [6, height,
    width] to work in, else new memory.

    Resizing reads the frame where it lies, padded rows and BGR order included; conversion,
    scale and shift are one table look-up a plane, straight into the result. Where `stretch.plan`
    has one, all of it is one pass, with the same result. With out, tables and scratch given, no
    memory is allocated but for a few rows.
    """
    shape = (len(frames), 3, spec.height, spec.width)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f'out must be a contiguous float32 array {list(shape)}')
    tables = normalisation_tables(spec) if tables is None else tables
    if scratch is None:
        scratch = np.empty((6, spec.height, spec.width), np.uint8)
    room, channels = scratch[:3].reshape(spec.height, spec.width, 3), list(scratch[3:])
    for frame, planes in zip(frames, out):
        planned = plan(frame.pixels.shape[:2], (spec.height, spec.width))
        if planned is not None:
            stretch(frame.pixels, planned, tables, planes, frame.order == 'bgr')
            continue
        small = resize(frame.pixels, spec.height, spec.width, room)
        if frame.order == 'bgr':
            planes = planes[::-1]
        order = tables if frame.order == 'rgb' else tables[::-1]
        for channel, table, plane in zip(cv2.split(small, channels), order, planes):
            # As one row: OpenCV deals rows out to threads, which costs as much as the look-up.
            cv2.LUT(channel.reshape(1, -1), table, dst=plane.reshape(1, -1))
    return out
