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
Imitated networks: mask logits and class probabilities of any size.

"crisp" has saturated masks and a third of its queries alive, as a trained network has; "soft"
blurs them; "dense" is the worst case, in which every query is alive and no mask saturates.
"""

from __future__ import annotations

import cv2
import numpy as np
from owseg_ros.readout.reference import class_probabilities

KINDS = ('crisp', 'soft', 'dense')


def imitate(kind: str, count: int, classes: int, size: tuple[int, int],
            seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return mask logits float32 [N, h, w] and class probabilities float32 [N, K]."""
    random = np.random.default_rng(seed)
    if kind == 'dense':
        masks = random.normal(0, 1.5, (count, *size)).astype(np.float32)
        logits = random.normal(0, 1, (count, classes + 1))
    else:
        steep, floor = (14.0, 4.0) if kind == 'crisp' else (3.0, 2.0)
        masks = np.empty((count, *size), np.float32)
        y, x = np.mgrid[:size[0], :size[1]]
        for mask in masks:
            centre = random.uniform((0, 0), size)
            radius = random.uniform(0.05, 0.4) * size[1]
            wobble = cv2.GaussianBlur(
                random.normal(0, 8, size).astype(np.float32), (0, 0), 3)
            distance = radius - np.hypot(y - centre[0], x - centre[1])
            mask[...] = steep * np.tanh((distance / 3 + wobble) / floor)
        logits = random.normal(0, 1, (count, classes + 1))
        live = random.random(count) < 0.3
        logits[live, random.integers(0, classes, live.sum())] += 9
        logits[~live, classes] += 9
    return masks, class_probabilities(logits).astype(np.float32)


def enlarge(masks: np.ndarray, probabilities: np.ndarray, size: tuple[int, int], classes: int,
            seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    Make a small network's output that of a larger frame with more classes.

    Mask logits [N, *, *] are resampled to [N, *size]; further classes are split off, each with
    half of what the queries say to another one, so that a query's sum stays.
    """
    masks = np.stack([cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR)
                      for mask in masks])
    random = np.random.default_rng(seed)
    columns = list(probabilities.T)
    while len(columns) < classes:
        chosen = int(random.integers(len(columns)))
        share = random.beta(0.2, 0.2, len(probabilities))
        columns.append(columns[chosen] * share)
        columns[chosen] = columns[chosen] * (1 - share)
    return masks, np.ascontiguousarray(np.stack(columns[:classes], axis=1), np.float32)
