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
"""Training augmentation on RGB uint8 images and their label maps."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

VOID = 255


def color_jitter(image: np.ndarray, rng: Generator) -> np.ndarray:
    """
    Photometric augmentation of SSD as detectron2's ColorAugSSDTransform orders it.

    Brightness +-32, contrast 0.5..1.5, saturation 0.5..1.5, hue +-18 (OpenCV's 0..179), each
    with probability one half.  image uint8 RGB [H, W, 3]; returns the same type.
    """
    def scale(picture: np.ndarray, gain: float, shift: float) -> np.ndarray:
        return cv2.convertScaleAbs(np.maximum(picture * gain + shift, 0))

    if rng.random() < 0.5:
        image = scale(image.astype(np.float32), 1.0, rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    gain = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    if contrast_first and gain != 1.0:
        image = scale(image.astype(np.float32), gain, 0.0)
    saturate, rotate = rng.random() < 0.5, rng.random() < 0.5
    if saturate or rotate:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if saturate:
            hsv[..., 1] = cv2.convertScaleAbs(hsv[..., 1].astype(np.float32)
                                              * rng.uniform(0.5, 1.5)).reshape(hsv.shape[:2])
        if rotate:
            shift = int(rng.integers(-18, 19))
            hsv[..., 0] = ((hsv[..., 0].astype(np.int16) + shift) % 180).astype(np.uint8)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first and gain != 1.0:
        image = scale(image.astype(np.float32), gain, 0.0)
    return image


def random_crop(image: np.ndarray, label: np.ndarray, size: tuple[int, int],
                scale: tuple[float, float], aspect: tuple[float, float], rng: Generator,
                ) -> tuple[np.ndarray, np.ndarray]:
    """
    Resize by a random scale and aspect ratio, then cut (or pad) to size.

    scale is relative to the size that covers the output once; aspect multiplies the width and
    divides the height by its root.  Padding is the image's mean and void.
    image uint8 [H, W, 3], label uint8 [H, W], size (width, height); returns both at size.
    """
    width, height = size
    factor = np.exp(rng.uniform(*np.log(scale)))
    stretch = np.sqrt(np.exp(rng.uniform(*np.log(aspect))))
    base = max(width / image.shape[1], height / image.shape[0])
    new_w = max(8, round(image.shape[1] * base * factor * stretch))
    new_h = max(8, round(image.shape[0] * base * factor / stretch))
    mode = cv2.INTER_AREA if new_w < image.shape[1] else cv2.INTER_LINEAR
    image = cv2.resize(image, (new_w, new_h), interpolation=mode)
    label = cv2.resize(label, (new_w, new_h), interpolation=cv2.INTER_NEAREST_EXACT)
    pad_w, pad_h = max(0, width - new_w), max(0, height - new_h)
    if pad_w or pad_h:
        left, top = int(rng.integers(pad_w + 1)), int(rng.integers(pad_h + 1))
        fill = tuple(float(v) for v in image.mean((0, 1)))
        border = (top, pad_h - top, left, pad_w - left, cv2.BORDER_CONSTANT)
        image = cv2.copyMakeBorder(image, *border, value=fill)
        label = cv2.copyMakeBorder(label, *border, value=VOID)
    x = int(rng.integers(image.shape[1] - width + 1))
    y = int(rng.integers(image.shape[0] - height + 1))
    return image[y:y + height, x:x + width], label[y:y + height, x:x + width]


def augment(image: np.ndarray, label: np.ndarray, size: tuple[int, int],
            scale: tuple[float, float], aspect: tuple[float, float], rng: Generator,
            ) -> tuple[np.ndarray, np.ndarray]:
    """Scale, crop, jitter colours and flip; shapes as random_crop."""
    image, label = random_crop(image, label, size, scale, aspect, rng)
    image = color_jitter(image, rng)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(label)
