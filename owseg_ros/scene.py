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
A procedural street camera with exact ground truth.

A pinhole camera drives along a straight street.  Ground and facades are textured planes, sampled
row by row and column by column at the right level of detail; everything that stands on the ground
is a shaded sprite, composed from far to near.  Frame `index` is a pure function of (seed, size,
index), so a consumer can render the ground truth of any frame it received.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import functools
import math

import cv2
import numpy as np

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
CLASS_NAMES = ('Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree', 'SignSymbol', 'Fence', 'Car',
               'Pedestrian', 'Bicyclist')
HAZARD, VOID = 254, 255
HAZARD_KINDS = ('animal', 'cone', 'box', 'tyre')

CAMERA_HEIGHT = 1.5
SPEED = 6.0
FOCAL_PER_WIDTH = 0.92
HORIZON = 0.46

PERIOD = 160.0
WALL_HEIGHT = 20.0
WALL_SCALE = 16
GROUND_SCALE_X = 32
GROUND_SCALE_Z = 16
LEVELS = 7
FAR, NEAR = 110.0, 2.2

CYCLE = 20.0
# Kind, seconds into the cycle at which it stands HAZARD_FAR ahead, offset from the lane (m).
_SCHEDULE = (('animal', 1.6, 0.3), ('cone', 6.0, -0.7), ('box', 10.4, 0.5), ('tyre', 15.0, -0.2))
HAZARD_FAR, HAZARD_NEAR = 24.0, 5.0


@dataclass(frozen=True)
class HazardEvent:
    """A hazard of this kind is on the road from frame first_index to last_index, inclusive."""

    kind: str
    first_index: int
    last_index: int


@dataclass(frozen=True)
class Hazard:
    """
    A hazard in a frame.

    box: x0, y0, x1, y1 of its visible pixels, x1 and y1 exclusive; pixels: their number;
    distance_m: along the optical axis, from the camera to where it stands.
    """

    kind: str
    box: tuple[int, int, int, int]
    pixels: int
    distance_m: float


@dataclass(frozen=True, eq=False)
class SceneFrame:
    """
    A rendered frame and its ground truth.

    image uint8 [H, W, 3] RGB; labels uint8 [H, W], ids of CamVid's 11 classes (CLASS_NAMES),
    254 on hazards, 255 where there is none of either.
    """

    image: np.ndarray
    labels: np.ndarray
    hazards: tuple[Hazard, ...]

    @property
    def anomaly(self) -> np.ndarray:
        """Return bool [H, W]: the pixels of hazards."""
        return self.labels == HAZARD


@dataclass(frozen=True, eq=False)
class _Sprite:
    """A standing object: premultiplied float32 RGBA [h, w, 4] (0..255, 0..1), labels, metres."""

    rgba: np.ndarray
    labels: np.ndarray
    width: float
    height: float


@dataclass(frozen=True)
class _Standing:
    """A sprite in the world: X to the right of the camera's lane, Z along the street (m)."""

    sprite: _Sprite
    x: float
    z: float
    kind: str = ''


class _Canvas:
    """Anti-aliased drawing of a sprite at `scale` pixels a metre, origin at the ground centre."""

    def __init__(self, width: float, height: float, scale: int, rng: np.random.Generator):
        self.width, self.height, self.scale, self.rng = width, height, scale, rng
        shape = (round(height * scale), round(width * scale))
        self.color = np.zeros((*shape, 3), np.float32)
        self.alpha = np.zeros(shape, np.float32)
        self.labels = np.full(shape, VOID, np.uint8)

    def points(self, points) -> np.ndarray:
        """Turn (x, y) in metres, y up, into fixed-point pixels."""
        array = np.asarray(points, np.float64)
        pixels = np.stack([(array[:, 0] + self.width / 2) * self.scale,
                           (self.height - array[:, 1]) * self.scale], 1)
        return np.round(pixels * 16).astype(np.int32)

    def polygon(self, points, color, label: int, grain: float = 6.0, shade: float = 0.0) -> None:
        """Fill a polygon given in metres; shade darkens to the right, grain adds texture."""
        corners = self.points(points)
        rows, columns = self.alpha.shape
        x0, y0 = np.maximum(corners.min(0) // 16 - 1, 0)
        x1, y1 = np.minimum(corners.max(0) // 16 + 2, (columns, rows))
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(mask, [corners - np.int32([x0 * 16, y0 * 16])], 255, cv2.LINE_AA, 4)
        cover = mask.astype(np.float32) / 255
        paint = np.empty((*mask.shape, 3), np.float32)
        paint[:] = color
        if grain:
            noise = self.rng.normal(0, grain, (mask.shape[0] // 2 + 1, mask.shape[1] // 2 + 1))
            paint += cv2.resize(noise.astype(np.float32), mask.shape[::-1])[..., None]
        if shade:
            paint *= (1 + shade * (0.5 - np.linspace(0, 1, mask.shape[1])))[None, :, None]
        window = slice(y0, y1), slice(x0, x1)
        self.color[window] += cover[..., None] * (paint - self.color[window])
        self.alpha[window] = np.maximum(self.alpha[window], cover)
        self.labels[window][cover > 0.5] = label

    def ellipse(self, x: float, y: float, rx: float, ry: float, color, label: int,
                angle: float = 0.0, **style) -> None:
        """Fill an ellipse given in metres, angle in degrees counter-clockwise."""
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        px, py = rx * np.cos(t), ry * np.sin(t)
        self.polygon(np.stack([x + c * px - s * py, y + s * px + c * py], 1), color, label,
                     **style)

    def limb(self, start, end, w0: float, w1: float, color, label: int, **style) -> None:
        """Draw a tapering limb between two points in metres."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        normal = np.array([start[1] - end[1], end[0] - start[0]])
        normal /= max(1e-6, np.linalg.norm(normal))
        self.polygon([start + normal * w0 / 2, end + normal * w1 / 2,
                      end - normal * w1 / 2, start - normal * w0 / 2], color, label, **style)
        self.ellipse(*end, w1 / 2, w1 / 2, color, label, **style)

    def sprite(self) -> _Sprite:
        """Finish: light from above, premultiplied."""
        light = np.linspace(1.12, 0.82, self.alpha.shape[0], dtype=np.float32)[:, None, None]
        color = np.clip(self.color * light, 0, 255) * self.alpha[..., None]
        return _Sprite(np.dstack([color, self.alpha]), self.labels, self.width, self.height)


def _cloth(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Return a muted colour: people seldom wear neon."""
    return np.clip(rng.uniform(low, high) + rng.normal(0, 24, 3), 12, 235)


def _pedestrian(rng: np.random.Generator, phase: float) -> _Sprite:
    canvas = _Canvas(1.0, 1.9, 72, rng)
    skin = np.array([205, 165, 140]) * rng.uniform(0.55, 1.0)
    top, legs = _cloth(rng, 30, 170), _cloth(rng, 25, 95)
    stride = 0.22 * math.sin(2 * math.pi * phase)
    for sign in (-1, 1):
        knee = (sign * stride * 0.6, 0.48)
        canvas.limb((sign * 0.07, 0.88), knee, 0.19, 0.14, legs * (0.9 + 0.1 * sign), PEDESTRIAN)
        canvas.limb(knee, (sign * stride * 1.1, 0.06), 0.14, 0.10, legs, PEDESTRIAN)
        canvas.ellipse(sign * stride * 1.1 + 0.04, 0.04, 0.11, 0.04, (30, 28, 28), PEDESTRIAN)
    canvas.polygon([(-0.21, 1.45), (0.21, 1.45), (0.18, 0.82), (-0.18, 0.82)], top, PEDESTRIAN,
                   shade=0.3)
    for sign in (-1, 1):
        canvas.limb((sign * 0.22, 1.42), (sign * 0.25 - stride * 0.7, 0.85), 0.11, 0.08,
                    top * 0.85, PEDESTRIAN)
    canvas.ellipse(0, 1.62, 0.10, 0.14, skin, PEDESTRIAN, shade=0.4)
    canvas.ellipse(0, 1.69, 0.11, 0.09, rng.uniform(15, 110, 3), PEDESTRIAN)
    return canvas.sprite()


def _bicyclist(rng: np.random.Generator, phase: float) -> _Sprite:
    canvas = _Canvas(0.9, 1.85, 72, rng)
    canvas.ellipse(0, 0.34, 0.05, 0.34, (28, 28, 30), BICYCLIST)
    canvas.limb((-0.3, 1.0), (0.3, 1.0), 0.04, 0.04, (40, 40, 45), BICYCLIST)
    top, legs = _cloth(rng, 70, 210), _cloth(rng, 25, 75)
    lift = 0.13 * math.sin(2 * math.pi * phase)
    for sign in (-1, 1):
        knee = (sign * 0.17, 0.72 + sign * lift)
        canvas.limb((sign * 0.1, 0.95), knee, 0.2, 0.15, legs, BICYCLIST)
        canvas.limb(knee, (sign * 0.12, 0.3 + sign * lift), 0.14, 0.09, legs * 0.9, BICYCLIST)
    canvas.polygon([(-0.23, 1.45), (0.23, 1.45), (0.18, 0.9), (-0.18, 0.9)], top, BICYCLIST,
                   shade=0.3)
    for sign in (-1, 1):
        canvas.limb((sign * 0.24, 1.42), (sign * 0.3, 1.02), 0.11, 0.08, top * 0.9, BICYCLIST)
    canvas.ellipse(0, 1.63, 0.10, 0.13, (190, 150, 125), BICYCLIST)
    canvas.ellipse(0, 1.70, 0.13, 0.09, _cloth(rng, 40, 210), BICYCLIST)
    return canvas.sprite()


def _car(rng: np.random.Generator, rear: bool) -> _Sprite:
    canvas = _Canvas(1.9, 1.55, 96, rng)
    palette = np.array([[150, 152, 155], [35, 36, 40], [120, 20, 22], [28, 45, 95],
                        [200, 200, 198], [60, 75, 70]], float)
    paint = palette[rng.integers(len(palette))] * rng.uniform(0.8, 1.15)
    for sign in (-1, 1):
        canvas.polygon([(sign * 0.82, 0.0), (sign * 0.56, 0.0), (sign * 0.56, 0.45),
                        (sign * 0.82, 0.45)], (22, 22, 24), CAR, grain=3)
    canvas.polygon([(-0.88, 0.22), (0.88, 0.22), (0.92, 0.55), (0.88, 0.88), (0.66, 1.42),
                    (0.45, 1.5), (-0.45, 1.5), (-0.66, 1.42), (-0.88, 0.88), (-0.92, 0.55)],
                   paint, CAR, shade=0.25, grain=3)
    canvas.polygon([(-0.76, 0.92), (0.76, 0.92), (0.58, 1.38), (-0.58, 1.38)],
                   (52, 62, 72), CAR, shade=-0.5, grain=4)
    canvas.polygon([(-0.7, 0.95), (-0.2, 0.95), (-0.42, 1.36), (-0.55, 1.36)],
                   (120, 136, 150), CAR, grain=4)
    light = (150, 22, 20) if rear else (228, 230, 222)
    for sign in (-1, 1):
        canvas.polygon([(sign * 0.86, 0.62), (sign * 0.56, 0.62), (sign * 0.6, 0.82),
                        (sign * 0.87, 0.84)], light, CAR, grain=8)
    canvas.polygon([(-0.9, 0.22), (0.9, 0.22), (0.91, 0.44), (-0.91, 0.44)], paint * 0.55, CAR,
                   grain=3)
    canvas.polygon([(-0.26, 0.44), (0.26, 0.44), (0.26, 0.56), (-0.26, 0.56)],
                   (215, 190, 60) if rear else (225, 225, 222), CAR, grain=2)
    if not rear:
        canvas.polygon([(-0.45, 0.58), (0.45, 0.58), (0.42, 0.76), (-0.42, 0.76)], (30, 30, 33),
                       CAR)
    return canvas.sprite()


def _lamp_post(rng: np.random.Generator) -> _Sprite:
    canvas = _Canvas(2.6, 7.0, 48, rng)
    grey = np.full(3, rng.uniform(70, 130))
    canvas.limb((0, 0), (0, 6.7), 0.2, 0.12, grey, POLE, shade=0.6)
    canvas.limb((0, 6.7), (1.1, 6.8), 0.1, 0.08, grey, POLE)
    canvas.ellipse(1.15, 6.78, 0.14, 0.07, (205, 205, 198), POLE)
    return canvas.sprite()


def _sign(rng: np.random.Generator) -> _Sprite:
    canvas = _Canvas(0.9, 3.1, 72, rng)
    canvas.limb((0, 0), (0, 2.7), 0.1, 0.1, (140, 140, 142), POLE, shade=0.6)
    kind = rng.integers(3)
    if kind == 0:
        canvas.ellipse(0, 2.6, 0.38, 0.38, (190, 25, 30), SIGN, grain=3)
        canvas.ellipse(0, 2.6, 0.27, 0.27, (235, 235, 232), SIGN, grain=3)
        canvas.polygon([(-0.06, 2.42), (0.06, 2.42), (0.06, 2.78), (-0.06, 2.78)], (25, 25, 25),
                       SIGN)
    elif kind == 1:
        canvas.polygon([(-0.4, 2.3), (0.4, 2.3), (0.4, 2.95), (-0.4, 2.95)], (25, 70, 165), SIGN,
                       grain=3)
        canvas.polygon([(-0.1, 2.4), (0.1, 2.4), (0.1, 2.7), (0.22, 2.7), (0, 2.9), (-0.22, 2.7),
                        (-0.1, 2.7)], (235, 235, 235), SIGN, grain=3)
    else:
        canvas.polygon([(-0.42, 2.3), (0.42, 2.3), (0, 2.98)], (190, 25, 30), SIGN, grain=3)
        canvas.polygon([(-0.25, 2.4), (0.25, 2.4), (0, 2.8)], (238, 236, 228), SIGN, grain=3)
    return canvas.sprite()


def _tree(rng: np.random.Generator) -> _Sprite:
    height = rng.uniform(5.5, 9.5)
    crown = rng.uniform(1.8, 2.8)
    canvas = _Canvas(2 * crown + 1.2, height, 40, rng)
    bark = np.array([72, 60, 48]) * rng.uniform(0.7, 1.2)
    canvas.limb((0, 0), (0.1, height - crown), 0.36, 0.24, bark, TREE, shade=0.7, grain=12)
    green = np.array([62, 84, 38]) * rng.uniform(0.7, 1.25) + rng.uniform(-12, 12, 3)
    middle = height - crown - 0.2
    for layer in range(3):
        for _ in range(34):
            angle, radius = rng.uniform(0, 2 * math.pi), crown * math.sqrt(rng.uniform(0, 1))
            x, y = radius * math.cos(angle), middle + 0.9 * radius * math.sin(angle)
            size = rng.uniform(0.22, 0.62) * (1.15 - 0.2 * layer)
            # Leaves towards the upper left catch the light.
            lit = 0.62 + 0.22 * layer + 0.16 * (y - middle - x) / crown
            spokes = np.linspace(0, 2 * math.pi, 13, endpoint=False)
            ragged = size * rng.uniform(0.6, 1.2, 13)
            canvas.polygon(np.stack([x + ragged * np.cos(spokes), y + ragged * np.sin(spokes)], 1),
                           green * lit, TREE, grain=17)
    return canvas.sprite()


def _animal(rng: np.random.Generator) -> _Sprite:
    canvas = _Canvas(1.9, 1.7, 96, rng)
    coat = np.array([112, 84, 58]) * rng.uniform(0.85, 1.15)
    for x, swing, shade in ((-0.46, -0.1, 0.5), (0.3, 0.1, 0.5)):
        canvas.limb((x, 0.8), (x + swing, 0.42), 0.15, 0.08, coat * shade, HAZARD)
        canvas.limb((x + swing, 0.42), (x + swing * 0.5, 0.03), 0.08, 0.055, coat * shade, HAZARD)
    canvas.limb((-0.6, 0.98), (-0.68, 0.72), 0.09, 0.05, coat * 1.3, HAZARD)
    canvas.polygon([(-0.62, 1.0), (-0.45, 1.08), (-0.1, 1.03), (0.25, 1.06), (0.5, 1.14),
                    (0.56, 0.9), (0.46, 0.72), (0.2, 0.66), (-0.15, 0.68), (-0.4, 0.66),
                    (-0.6, 0.76)], coat, HAZARD, grain=11)
    canvas.polygon([(-0.3, 0.74), (0.25, 0.73), (0.2, 0.655), (-0.15, 0.665)], coat * 1.25,
                   HAZARD, grain=7)
    for x, swing in ((-0.5, 0.1), (0.42, -0.06)):
        canvas.limb((x, 0.86), (x + swing, 0.44), 0.2, 0.09, coat * 0.92, HAZARD)
        canvas.limb((x + swing, 0.44), (x + swing * 0.4, 0.03), 0.085, 0.06, coat * 0.75, HAZARD)
    canvas.limb((0.4, 1.02), (0.66, 1.42), 0.32, 0.15, coat, HAZARD, grain=9)
    canvas.limb((0.64, 1.44), (0.9, 1.32), 0.19, 0.09, coat * 1.05, HAZARD, grain=8)
    canvas.polygon([(0.56, 1.46), (0.52, 1.64), (0.63, 1.52)], coat * 0.8, HAZARD)
    canvas.polygon([(0.64, 1.5), (0.66, 1.68), (0.72, 1.5)], coat * 0.9, HAZARD)
    canvas.ellipse(0.93, 1.31, 0.04, 0.035, (22, 18, 16), HAZARD, grain=0)
    canvas.ellipse(0.72, 1.44, 0.022, 0.02, (10, 10, 10), HAZARD, grain=0)
    return canvas.sprite()


def _cone(rng: np.random.Generator) -> _Sprite:
    canvas = _Canvas(0.62, 0.92, 160, rng)
    orange = (226, 86, 24)
    canvas.polygon([(-0.29, 0), (0.29, 0), (0.25, 0.06), (-0.25, 0.06)], (176, 62, 18), HAZARD)

    def side(y: float) -> float:
        return 0.2 - 0.17 * (y - 0.05) / 0.85

    for low, high, color in ((0.05, 0.28, orange), (0.28, 0.45, (236, 236, 232)),
                             (0.45, 0.6, orange), (0.6, 0.73, (236, 236, 232)),
                             (0.73, 0.9, orange)):
        canvas.polygon([(-side(low), low), (side(low), low), (side(high), high),
                        (-side(high), high)], color, HAZARD, shade=0.7, grain=4)
    return canvas.sprite()


def _box(rng: np.random.Generator) -> _Sprite:
    canvas = _Canvas(1.0, 0.85, 128, rng)
    card = np.array([176, 134, 86]) * rng.uniform(0.9, 1.1)
    canvas.polygon([(-0.46, 0), (0.22, 0), (0.22, 0.56), (-0.46, 0.56)], card, HAZARD, grain=7)
    canvas.polygon([(0.22, 0), (0.46, 0.1), (0.46, 0.66), (0.22, 0.56)], card * 0.66, HAZARD,
                   grain=7)
    canvas.polygon([(-0.46, 0.56), (0.22, 0.56), (0.46, 0.66), (-0.2, 0.66)], card * 0.45, HAZARD)
    canvas.polygon([(-0.46, 0.56), (-0.2, 0.66), (-0.3, 0.82), (-0.49, 0.72)], card * 1.15,
                   HAZARD)
    canvas.polygon([(-0.16, 0), (-0.06, 0), (-0.06, 0.56), (-0.16, 0.56)], card * 1.22, HAZARD,
                   grain=3)
    return canvas.sprite()


def _tyre(rng: np.random.Generator) -> _Sprite:
    canvas = _Canvas(0.8, 0.72, 160, rng)
    canvas.ellipse(0.03, 0.35, 0.33, 0.34, (24, 24, 26), HAZARD, grain=5)
    canvas.ellipse(-0.03, 0.35, 0.31, 0.34, (50, 50, 53), HAZARD, grain=7, shade=0.6)
    canvas.ellipse(-0.04, 0.35, 0.19, 0.21, (30, 30, 32), HAZARD, grain=4)
    canvas.ellipse(-0.05, 0.34, 0.16, 0.18, (92, 88, 84), HAZARD, grain=6)
    return canvas.sprite()


_HAZARDS: dict[str, Callable[[np.random.Generator], _Sprite]] = {
    'animal': _animal, 'cone': _cone, 'box': _box, 'tyre': _tyre}


def _noise(rng: np.random.Generator, shape: tuple[int, int], *sizes: int) -> np.ndarray:
    """Sum of value noise of the given grain sizes (pixels), float32, about -1..1, tileable."""
    total = np.zeros(shape, np.float32)
    for size in sizes:
        grid = rng.normal(0, 0.4, (max(1, shape[0] // size), max(1, shape[1] // size)))
        tiled = np.pad(grid, 1, mode='wrap').astype(np.float32)
        scale_y, scale_x = shape[0] / grid.shape[0], shape[1] / grid.shape[1]
        big = cv2.resize(tiled, (round(tiled.shape[1] * scale_x), round(tiled.shape[0] * scale_y)),
                         interpolation=cv2.INTER_CUBIC)
        y, x = round(scale_y), round(scale_x)
        total += big[y:y + shape[0], x:x + shape[1]]
    return total / max(1, len(sizes)) ** 0.5


def _wall_strip(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Facades, hedges and fences along a side: premultiplied RGBA [h, n, 4], labels [h, n]."""
    height, length = round(WALL_HEIGHT * WALL_SCALE), round(PERIOD * WALL_SCALE)
    rgba = np.zeros((height, length, 4), np.float32)
    labels = np.full((height, length), SKY, np.uint8)
    grain = _noise(rng, (height, length), 2, 5, 40)[..., None]
    at = 0
    while at < length:
        kind = rng.choice(3, p=(0.72, 0.18, 0.1))
        size = min(length - at, round(rng.uniform(7, 16) * WALL_SCALE))
        if length - at - size < 6 * WALL_SCALE:
            size = length - at
        section = slice(at, at + size)
        if kind == 0:
            top = _facade(rng, rgba[:, section], labels[:, section])
            noise = 9.0
        else:
            top = rng.uniform(3.5, 6.5) if kind == 1 else rng.uniform(1.5, 2.0)
            noise = _hedge(rng, rgba[:, section], labels[:, section], top, kind == 2)
        rgba[:, section, :3] += noise * grain[:, section]
        at += size
    rgba[..., :3] = np.clip(rgba[..., :3], 0, 255) * rgba[..., 3:]
    rgba[..., 3] *= 255
    return rgba, labels


def _facade(rng: np.random.Generator, rgba: np.ndarray, labels: np.ndarray) -> float:
    rows, columns = labels.shape
    floors = int(rng.integers(2, 5))
    storey = rng.uniform(2.9, 3.5)
    top = floors * storey + rng.uniform(0.4, 1.6)
    first = rows - round(top * WALL_SCALE)
    palette = np.array([[148, 116, 92], [168, 152, 128], [126, 84, 66], [178, 172, 160],
                        [120, 112, 104], [150, 128, 98]], float)
    color = palette[rng.integers(len(palette))] * rng.uniform(0.75, 1.1)
    rgba[first:, :, :3], rgba[first:, :, 3] = color, 1
    labels[first:] = BUILDING
    for row in range(first, rows, 5):
        rgba[row, :, :3] *= 0.93
    rgba[first:first + 5, :, :3] = color * 0.6
    window_w, pitch = rng.uniform(0.9, 1.4), rng.uniform(2.1, 3.2)
    glass = np.array([44, 52, 60]) * rng.uniform(0.8, 1.5)
    frame = np.array([205, 202, 195]) * rng.uniform(0.6, 1.0)
    for floor in range(floors):
        low = floor * storey + (0.9 if floor else 0.5)
        high = low + (1.5 if floor else 2.0)
        y0, y1 = rows - round(high * WALL_SCALE), rows - round(low * WALL_SCALE)
        x = pitch / 2
        while x + window_w < columns / WALL_SCALE:
            x0, x1 = round(x * WALL_SCALE), round((x + window_w) * WALL_SCALE)
            rgba[y0 - 2:y1 + 2, x0 - 2:x1 + 2, :3] = frame
            ramp = np.linspace(1.7, 0.8, y1 - y0)[:, None, None]
            rgba[y0:y1, x0:x1, :3] = glass * ramp * rng.uniform(0.7, 1.3)
            middle = (x0 + x1) // 2
            rgba[y0:y1, middle:middle + 1, :3] = frame * 0.8
            x += pitch
    if rng.random() < 0.5:
        door = round(rng.uniform(1, max(1.1, columns / WALL_SCALE - 2)) * WALL_SCALE)
        paint = _cloth(rng, 40, 110)
        rgba[rows - round(2.2 * WALL_SCALE):, door:door + round(1.1 * WALL_SCALE), :3] = paint
    base = rows - round(0.4 * WALL_SCALE)
    rgba[base:, :, :3] *= 0.7
    return top


def _hedge(rng: np.random.Generator, rgba: np.ndarray, labels: np.ndarray, top: float,
           fence: bool) -> float:
    rows, columns = labels.shape
    if fence:
        first = rows - round(top * WALL_SCALE)
        color = np.array([96, 84, 70]) * rng.uniform(0.6, 1.2)
        rgba[first:, :, :3], rgba[first:, :, 3] = color, 1
        for x in range(0, columns, 4):
            rgba[first:, x, :3] = color * 0.55
        for y in (first, first + 6, rows - 6):
            rgba[y:y + 2, :, :3] = color * 1.2
        labels[first:] = FENCE
        return 6.0
    outline = top + 0.9 * _noise(rng, (4, columns), 30, 12)[0]
    first = rows - np.clip(np.round(outline * WALL_SCALE), 8, rows - 1).astype(int)
    inside = np.arange(rows)[:, None] >= first[None]
    green = np.array([66, 84, 42]) * rng.uniform(0.65, 1.2)
    rgba[..., :3] = np.where(inside[..., None], green, 0)
    rgba[..., 3] = inside
    labels[inside] = TREE
    return 26.0


def _ground(rng: np.random.Generator, road: tuple[float, float], walk: tuple[float, float],
            ) -> tuple[np.ndarray, np.ndarray]:
    """Road, markings, kerbs and pavements: float32 [n, w, 3] and labels [n, w]."""
    shape = round(PERIOD * GROUND_SCALE_Z), round((walk[1] - walk[0]) * GROUND_SCALE_X)
    x = (np.arange(shape[1]) + 0.5) / GROUND_SCALE_X + walk[0]
    z = (np.arange(shape[0]) + 0.5) / GROUND_SCALE_Z
    coarse, fine = _noise(rng, shape, 90, 24), _noise(rng, shape, 3, 6)
    color = np.empty((*shape, 3), np.float32)
    color[:] = np.array([98, 96, 95]) * rng.uniform(0.8, 1.15)
    color += (7 * coarse + 6 * fine)[..., None]
    # Wheels polish two tracks in each lane.
    centre = (road[0] + road[1]) / 2
    for lane in ((road[0] + centre) / 2, (road[1] + centre) / 2):
        for track in (-0.75, 0.75):
            color -= 7 * np.exp(-((x - lane - track) / 0.25) ** 2)[None, :, None]
    on_road = (x >= road[0]) & (x < road[1])
    labels = np.full(shape, PAVEMENT, np.uint8)
    labels[:, on_road] = ROAD
    slab = np.array([150, 146, 140]) * rng.uniform(0.8, 1.1)
    pavement = np.empty_like(color)
    pavement[:] = slab
    pavement += (8 * coarse + 5 * fine)[..., None]
    pavement[:, (x * 1.67).astype(int) != ((x + 0.035) * 1.67).astype(int)] *= 0.82
    pavement[(z * 1.67).astype(int) != ((z + 0.07) * 1.67).astype(int)] *= 0.82
    color[:, ~on_road] = pavement[:, ~on_road]
    for edge, outward in ((road[0], -1), (road[1], 1)):
        kerb = (x - edge) * outward
        color[:, (kerb >= 0) & (kerb < 0.18)] = slab * 1.12
        color[:, (kerb < 0) & (kerb > -0.12)] *= 0.7
    worn = np.clip(1 + 0.35 * fine + 0.2 * coarse, 0.35, 1)[..., None]
    paint = np.full(3, rng.uniform(195, 230))
    dash = (z % 8.0) < 3.0
    line = np.abs(x - centre) < 0.07
    color[np.ix_(dash, line)] += (worn * (paint - color))[np.ix_(dash, line)]
    for edge in (road[0] + 0.35, road[1] - 0.35):
        line = np.abs(x - edge) < 0.06
        color[:, line] += (worn * (paint * [1, 0.93, 0.55] - color))[:, line]
    for _ in range(10):
        cz, cx = rng.uniform(4, PERIOD - 4), rng.uniform(*road)
        patch = np.ix_(np.abs(z - cz) < rng.uniform(0.5, 2), on_road & (
            np.abs(x - cx) < rng.uniform(0.3, 0.9)))
        color[patch] *= rng.uniform(0.75, 0.92)
    return color, labels


def _halve(array: np.ndarray, axis: int) -> np.ndarray:
    """Average pairs along an axis."""
    even = [slice(None)] * array.ndim
    odd = list(even)
    even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
    return (array[tuple(even)] + array[tuple(odd)]) / 2


def _pyramid(array: np.ndarray, axis: int) -> list[np.ndarray]:
    """Levels of detail along one axis, the other softened to match, as uint8."""
    levels, current = [], array
    for level in range(LEVELS):
        soft = current
        if level:
            blur = (2 * level + 1, 1) if axis == 0 else (1, 2 * level + 1)
            soft = cv2.blur(current, blur)
        levels.append(cv2.convertScaleAbs(soft.reshape(len(soft), -1)).reshape(soft.shape))
        if current.shape[axis] % 2:
            break
        current = _halve(current, axis)
    return levels


class _Plane:
    """Picks lines of a textured plane at a level of detail, repeating along the street."""

    def __init__(self, texture: np.ndarray, labels: np.ndarray, axis: int, scale: float):
        self.levels = _pyramid(texture, axis)
        self.labels = labels
        self.axis = axis
        self.scale = scale

    def pick(self, z: np.ndarray, footprint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the texture and label lines at street positions z, footprint in metres."""
        level = np.clip(np.round(np.log2(np.maximum(1, footprint * self.scale))), 0,
                        len(self.levels) - 1).astype(int)
        index = np.floor((z % PERIOD) * self.scale).astype(int)
        index = np.minimum(index, self.labels.shape[self.axis] - 1)
        shape = list(self.levels[0].shape)
        shape[self.axis] = len(z)
        lines = np.empty(shape, np.uint8)
        for value in np.unique(level):
            at = np.flatnonzero(level == value)
            source = self.levels[value]
            rows = np.minimum(index[at] >> value, source.shape[self.axis] - 1)
            if self.axis == 0:
                lines[at] = source[rows]
            else:
                lines[:, at] = source[:, rows]
        return lines, self.labels.take(index, self.axis)


class StreetScene:
    """
    A street that is driven along, as a camera sees it.

    width, height: size of the image in pixels; seed: another street, light and traffic; fps:
    frames a second, which sets the time between two indices; hazards: put HAZARD_KINDS on the
    road at the times of hazard_times().
    Raises ValueError for sizes below 64 pixels and rates that are not positive.
    """

    def __init__(self, width: int = 640, height: int = 480, seed: int = 0, fps: float = 15.0,
                 hazards: bool = True) -> None:
        if width < 64 or height < 64:
            raise ValueError(f'the image must be at least 64x64 pixels, not {width}x{height}')
        if not fps > 0:
            raise ValueError(f'fps must be positive, not {fps}')
        self.width, self.height, self.seed, self.fps = width, height, seed, fps
        self.hazards = hazards
        self.focal = FOCAL_PER_WIDTH * width
        self.centre = (width / 2, HORIZON * height)
        rng = np.random.default_rng((seed, 17))
        left, right = -rng.uniform(2.2, 3.0), rng.uniform(5.0, 6.2)
        self.road = (left, right)
        self.walls = (left - rng.uniform(2.2, 4.0), right + rng.uniform(2.2, 4.0))
        self._light(rng)
        self._sprites(rng)
        reach = (self.walls[0] - 1.0, self.walls[1] + 1.0)
        self._ground_left = reach[0]
        self._ground_plane = _Plane(*_ground(rng, self.road, reach), 0, GROUND_SCALE_Z)
        self._wall_planes = [_Plane(*_wall_strip(rng), 1, WALL_SCALE) for _ in self.walls]
        self._geometry()
        self._sky = self._make_sky(rng)
        self._grain = rng.normal(0, 1, (height + 64, width + 64, 1)).astype(np.float32)
        self._layout = functools.lru_cache(maxsize=8)(self._make_layout)

    @property
    def camera_matrix(self) -> np.ndarray:
        """Return the pinhole matrix K, float64 [3, 3]; optical frame: x right, y down."""
        return np.array([[self.focal, 0, self.centre[0]], [0, self.focal, self.centre[1]],
                         [0, 0, 1.0]])

    def hazard_times(self, cycles: int = 1) -> tuple[HazardEvent, ...]:
        """Return the hazards of the first cycles (20 s each); later cycles repeat them."""
        return tuple(event for cycle in range(cycles) for event, _, _ in self._events(cycle))

    def _events(self, cycle: int) -> list[tuple[HazardEvent, float, float]]:
        if not self.hazards:
            return []
        events = []
        for kind, offset, x in _SCHEDULE:
            start = cycle * CYCLE + offset
            first = math.ceil(start * self.fps)
            last = math.floor((start + (HAZARD_FAR - HAZARD_NEAR) / SPEED) * self.fps)
            events.append((HazardEvent(kind, first, last), x, SPEED * start + HAZARD_FAR))
        return events

    def _light(self, rng: np.random.Generator) -> None:
        self.exposure = rng.uniform(0.78, 1.12)
        self.tint = np.array([rng.uniform(0.97, 1.05), 1.0, rng.uniform(0.94, 1.04)], np.float32)
        self.haze = np.array([196, 203, 210], np.float32) * rng.uniform(0.85, 1.08)
        self.haze_distance = rng.uniform(140, 420)
        self.sunny = rng.random() < 0.6

    def _sprites(self, rng: np.random.Generator) -> None:
        self.trees = [_tree(rng) for _ in range(4)]
        self.cars = {rear: [_car(rng, rear) for _ in range(4)] for rear in (True, False)}
        self.people = []
        for _ in range(4):
            state = int(rng.integers(2 ** 31))
            self.people.append([_pedestrian(np.random.default_rng(state), p / 8)
                                for p in range(8)])
        state = int(rng.integers(2 ** 31))
        self.cyclists = [_bicyclist(np.random.default_rng(state), p / 8) for p in range(8)]
        self.signs = [_sign(rng) for _ in range(3)]
        self.lamp = _lamp_post(rng)
        self.hazard_sprites = {kind: make(rng) for kind, make in _HAZARDS.items()}

    def _geometry(self) -> None:
        columns = np.arange(self.width) + 0.5 - self.centre[0]
        rows = np.arange(self.height) + 0.5 - self.centre[1]
        self._first_ground = int(np.searchsorted(rows, 0.5))
        below = rows[self._first_ground:]
        self._ground_z = np.minimum(self.focal * CAMERA_HEIGHT / below, 400.0)
        self._ground_footprint = self._ground_z ** 2 / (self.focal * CAMERA_HEIGHT)
        x = columns[None] * self._ground_z[:, None] / self.focal
        self._ground_map = (
            ((x - self._ground_left) * GROUND_SCALE_X - 0.5).astype(np.float32),
            np.repeat(np.arange(len(below), dtype=np.float32)[:, None], self.width, 1))
        # Facades: every column of the image looks at one position along the street.
        side = np.where(columns < 0, -self.walls[0], self.walls[1])
        self._wall_side = columns >= 0
        self._wall_z = np.minimum(side * self.focal / np.maximum(np.abs(columns), 0.5), 400.0)
        self._wall_footprint = self._wall_z ** 2 / (self.focal * side)
        level = CAMERA_HEIGHT - rows[:, None] * self._wall_z[None] / self.focal
        self._wall_map = (
            np.repeat(np.arange(self.width, dtype=np.float32)[None], self.height, 0),
            ((WALL_HEIGHT - level) * WALL_SCALE - 0.5).astype(np.float32))
        self._wall_on = ((level > 0) & (level < WALL_HEIGHT)).astype(np.float32)
        depth = np.repeat(self._wall_z[None], self.height, 0)
        ground = np.full((self.height, self.width), np.inf)
        ground[self._first_ground:] = self._ground_z[:, None]
        self._haze_ground = self._hazed(ground)
        self._haze_wall = self._hazed(depth)
        y, x = np.meshgrid(np.linspace(-1, 1, self.height), np.linspace(-1, 1, self.width),
                           indexing='ij')
        self._vignette = (1 - 0.13 * (x * x + y * y))[..., None].astype(np.float32)

    def _hazed(self, depth: np.ndarray) -> np.ndarray:
        return (1 - np.exp(-depth / self.haze_distance))[..., None].astype(np.float32)

    def _make_sky(self, rng: np.random.Generator) -> np.ndarray:
        rows = np.linspace(0, 1, self.height)[:, None, None] / HORIZON
        top = np.array([120, 156, 205] if self.sunny else [188, 194, 202], np.float32)
        sky = top + (self.haze - top) * np.clip(rows, 0, 1) ** 0.8
        grain = max(8, self.width // 6)
        shape = (self.height, self.width)
        cloud = _noise(rng, shape, grain, grain // 2, grain // 4)[..., None]
        cover = np.clip(cloud * 1.1 + 0.1, 0, 1) * (0.85 if self.sunny else 0.35)
        return (sky + cover * (np.array([244, 244, 246]) - sky)).astype(np.float32)

    def _make_layout(self, block: int) -> tuple[list[_Standing], list[tuple]]:
        """Objects of one PERIOD of street: those that stand and those that move."""
        rng = np.random.default_rng((self.seed, 23, block + 4))
        left, right = self.road
        standing: list[_Standing] = []
        origin = block * PERIOD

        def place(sprite: _Sprite, x: float, z: float) -> None:
            standing.append(_Standing(sprite, x, origin + z))

        for k in range(8):
            side = k % 2
            x = left - 0.7 if side == 0 else right + 0.7
            place(self.lamp, x, 6 + 20 * k + rng.uniform(-2, 2))
        for k in range(7):
            x = left - rng.uniform(1.2, 1.9) if rng.random() < 0.5 else right + rng.uniform(1.2, 2)
            place(self.trees[rng.integers(4)], x, 14 + 22 * k + rng.uniform(-5, 5))
        for k in range(5):
            x = left - 0.5 if rng.random() < 0.6 else right + 0.5
            place(self.signs[rng.integers(3)], x, 10 + 31 * k + rng.uniform(-6, 6))
        for k in range(8):
            if rng.random() < 0.75:
                place(self.cars[False][rng.integers(4)], right - 1.0,
                      5 + 19.5 * k + rng.uniform(-3, 3))
        movers: list[tuple] = []
        for _ in range(9):
            x = left - rng.uniform(0.7, 1.9) if rng.random() < 0.55 else right + rng.uniform(
                0.7, 1.9)
            movers.append(('person', int(rng.integers(4)), x, origin + rng.uniform(0, PERIOD),
                           float(rng.choice([-1.3, 1.3])), float(rng.uniform())))
        for _ in range(3):
            movers.append(('bicycle', 0, left + 0.75, origin + rng.uniform(0, PERIOD),
                           float(rng.uniform(3.2, 4.4)), float(rng.uniform())))
        lane = (right + (left + right) / 2) / 2 - 0.6
        for _ in range(2):
            movers.append(('car', int(rng.integers(4)), lane, origin + rng.uniform(0, PERIOD),
                           -float(rng.uniform(6, 9)), 0.0))
        return standing, movers

    def _visible(self, time: float) -> list[_Standing]:
        camera = SPEED * time
        objects: list[_Standing] = []
        for block in range(math.floor((camera - PERIOD) / PERIOD),
                           math.floor((camera + 2 * PERIOD) / PERIOD) + 1):
            standing, movers = self._layout(block)
            objects += standing
            # A mover is where the layout says when the camera reaches the block's middle.
            meeting = (block + 0.5) * PERIOD / SPEED
            for kind, which, x, z, speed, phase in movers:
                at = z + speed * (time - meeting)
                step = int((phase + abs(speed) * time * 0.7) * 8) % 8
                if kind == 'person':
                    sprite = self.people[which][step]
                elif kind == 'bicycle':
                    sprite = self.cyclists[step]
                else:
                    sprite = self.cars[False][which]
                objects.append(_Standing(sprite, x, at))
        lead = 33 + 5 * math.sin(time / 5 + self.seed)
        objects.append(_Standing(self.cars[True][self.seed % 4], 0.1, camera + lead))
        return objects

    def _active_hazards(self, index: int) -> list[_Standing]:
        cycle = int(index / self.fps // CYCLE)
        return [_Standing(self.hazard_sprites[event.kind], x, z, event.kind)
                for c in (cycle - 1, cycle) if c >= 0
                for event, x, z in self._events(c)
                if event.first_index <= index <= event.last_index]

    def render(self, index: int) -> SceneFrame:
        """
        Render frame `index` >= 0.

        Raises ValueError for a negative index.
        """
        if index < 0:
            raise ValueError(f'the index must be 0 or more, not {index}')
        time = index / self.fps
        camera = SPEED * time
        image, labels = self._planes(camera)
        objects = [(o, o.z - camera) for o in self._visible(time) + self._active_hazards(index)]
        objects = [pair for pair in objects if NEAR < pair[1] < FAR]
        owner = np.zeros(labels.shape, np.uint8)
        hazards = []
        for standing, distance in sorted(objects, key=lambda pair: -pair[1]):
            number = 0
            if standing.kind:
                hazards.append((standing.kind, distance))
                number = len(hazards)
            self._compose(image, labels, owner, standing, distance, number)
        found = []
        for number, (kind, distance) in enumerate(hazards, start=1):
            ys, xs = np.nonzero(owner == number)
            if len(ys):
                box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
                found.append(Hazard(kind, box, len(ys), float(distance)))
        return SceneFrame(self._develop(image, index), labels, tuple(found))

    def _planes(self, camera: float) -> tuple[np.ndarray, np.ndarray]:
        image = self._sky.copy()
        labels = np.full((self.height, self.width), SKY, np.uint8)
        first = self._first_ground
        lines, label_lines = self._ground_plane.pick(
            camera + self._ground_z, self._ground_footprint)
        ground = cv2.remap(lines, *self._ground_map, cv2.INTER_LINEAR,
                           borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
        haze = self._haze_ground[first:]
        image[first:] = ground + haze * (self.haze - ground)
        labels[first:] = cv2.remap(label_lines, *self._ground_map, cv2.INTER_NEAREST,
                                   borderMode=cv2.BORDER_REPLICATE)
        z = camera + self._wall_z
        rgba = np.empty((round(WALL_HEIGHT * WALL_SCALE), self.width, 4), np.uint8)
        ids = np.empty(rgba.shape[:2], np.uint8)
        for plane, columns in zip(self._wall_planes, (~self._wall_side, self._wall_side)):
            rgba[:, columns], ids[:, columns] = plane.pick(
                z[columns], self._wall_footprint[columns])
        wall = cv2.remap(rgba, *self._wall_map, cv2.INTER_LINEAR,
                         borderMode=cv2.BORDER_REPLICATE)
        wall_labels = cv2.remap(ids, *self._wall_map, cv2.INTER_NEAREST,
                                borderMode=cv2.BORDER_REPLICATE)
        wall = wall * self._wall_on[..., None]
        alpha, color = wall[..., 3:] / np.float32(255), wall[..., :3]
        color += self._haze_wall * (self.haze * alpha - color)
        image *= 1 - alpha
        image += color
        solid = (alpha[..., 0] > 0.5) & (wall_labels != SKY)
        labels[solid] = wall_labels[solid]
        return image, labels

    def _compose(self, image: np.ndarray, labels: np.ndarray, owner: np.ndarray,
                 standing: _Standing, distance: float, number: int) -> None:
        sprite, scale = standing.sprite, self.focal / distance
        u = self.centre[0] + standing.x * scale
        v = self.centre[1] + CAMERA_HEIGHT * scale
        self._shadow(image, u, v, sprite.width * scale)
        x0, x1 = round(u - sprite.width * scale / 2), round(u + sprite.width * scale / 2)
        y0, y1 = round(v - sprite.height * scale), round(v)
        if x1 - x0 < 2 or y1 - y0 < 2 or x1 <= 0 or x0 >= self.width or y0 >= self.height:
            return
        # Only the part of the sprite that is in the picture is resampled.
        cut_x = max(0, x0), min(self.width, x1)
        cut_y = max(0, y0), min(self.height, y1)
        if cut_y[1] <= cut_y[0]:
            return
        rows, columns = sprite.labels.shape
        step_x, step_y = columns / (x1 - x0), rows / (y1 - y0)
        size = (cut_x[1] - cut_x[0], cut_y[1] - cut_y[0])
        s0, s1 = int((cut_x[0] - x0) * step_x), math.ceil((cut_x[1] - x0) * step_x)
        t0, t1 = int((cut_y[0] - y0) * step_y), math.ceil((cut_y[1] - y0) * step_y)
        shrink = step_x > 1
        rgba = cv2.resize(sprite.rgba[t0:t1, s0:s1], size,
                          interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
        ids = cv2.resize(sprite.labels[t0:t1, s0:s1], size,
                         interpolation=cv2.INTER_NEAREST_EXACT)
        window = slice(*cut_y), slice(*cut_x)
        alpha = rgba[..., 3:]
        haze = 1 - math.exp(-distance / self.haze_distance)
        color = rgba[..., :3] + haze * (self.haze * alpha - rgba[..., :3])
        image[window] = image[window] * (1 - alpha) + color
        solid = (alpha[..., 0] > 0.5) & (ids != VOID)
        labels[window][solid] = ids[solid]
        owner[window][solid] = number

    def _shadow(self, image: np.ndarray, u: float, v: float, width: float) -> None:
        rx, ry = max(1.0, width * 0.55), max(1.0, width * 0.1)
        x0, x1 = max(0, int(u - 1.6 * rx)), min(self.width, math.ceil(u + 1.6 * rx))
        y0, y1 = max(self._first_ground, int(v - 1.6 * ry)), min(
            self.height, math.ceil(v + 1.6 * ry))
        if x1 <= x0 or y1 <= y0:
            return
        dx = (np.arange(x0, x1, dtype=np.float32) - u) / rx
        dy = (np.arange(y0, y1, dtype=np.float32) - v) / ry
        fall = np.exp(-1.5 * (dx[None] ** 2 + dy[:, None] ** 2))
        strength = 0.62 if self.sunny else 0.4
        image[y0:y1, x0:x1] *= (1 - strength * fall)[..., None]

    def _develop(self, image: np.ndarray, index: int) -> np.ndarray:
        image *= self._vignette * (self.tint * self.exposure)
        image = cv2.GaussianBlur(image, (3, 3), 0.55)
        rng = np.random.default_rng((self.seed, 29, index))
        y, x = rng.integers(0, 65, 2)
        image += 3.2 * self._grain[y:y + self.height, x:x + self.width]
        # Film-like contrast, as a camera's tone curve has.
        return cv2.convertScaleAbs(np.maximum(128 + (image - 128) * 1.06, 0))
