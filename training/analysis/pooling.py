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
What pooling under masks loses of small regions: soft masks against hard ones at stride 32.

Regions are the connected components of a label, so masks are perfect and what is lost is lost by
pooling. Recall is that of a linear probe on the pooled features: it means something for a
backbone with trained weights only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from owseg_training.analysis.run import frames, write
from owseg_training.data.datasets import DataSet, read_image
from owseg_training.data.stream import normalize
from owseg_training.network.clip_backbone import OpenClipBackbone
from owseg_training.network.frozen_clip import cell_weights, POOLINGS
from owseg_training.network.region_embedding import mask_pool
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
import torch
from torch import nn
from torch.nn import functional

# Smaller components are mostly the fringe of a label.
MIN_AREA = 16
# Of the areas of regions, in pixels of the frame.
BINS = {'16 to 99': (MIN_AREA, 100), '100 to 999': (100, 1000), 'under 1,000': (MIN_AREA, 1000),
        '1,000 to 9,999': (1000, 10_000), '10,000 and more': (10_000, np.inf)}
LARGE = 1000
STRIDE = 32
# A perfect mask's logits; sigmoids of 32-bit numbers go no further without becoming 1.
FIRM = 1e-5


@dataclass(frozen=True)
class Pooled:
    """
    Regions of a split as one pooling sees them, R of them.

    area: int64 [R], pixels of the frame; label: int64 [R], class ids; inside: float64 [R], the
    share of what is pooled that lies in the region, nan where nothing is; vectors: float32 [R, D],
    zeros where nothing is.
    """

    area: np.ndarray
    label: np.ndarray
    inside: np.ndarray
    vectors: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Return bool [R], whether anything of the region is left."""
        return ~np.isnan(self.inside)


def regions_of(label: np.ndarray, classes: Sequence[int], size: tuple[int, int],
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return the regions of a label map: connected components (of 8 neighbours) of its classes.

    classes: ids that count; size: (height, width) of the network's input.
    Returns (class ids int64 [R], areas int64 [R] in pixels of the label, masks float32
    [R, height, width] in 0..1); components under 16 pixels are left out.
    """
    height, width = size
    ids, areas, masks = [], [], []
    for index in classes:
        count, found, stats, _ = cv2.connectedComponentsWithStats(
            (label == index).astype(np.uint8), connectivity=8)
        for region in range(1, count):
            area = int(stats[region, cv2.CC_STAT_AREA])
            if area >= MIN_AREA:
                ids.append(index)
                areas.append(area)
                masks.append(cv2.resize((found == region).astype(np.float32), (width, height),
                                        interpolation=cv2.INTER_AREA))
    return (np.array(ids, np.int64), np.array(areas, np.int64),
            np.array(masks, np.float32).reshape(-1, height, width))


def fitting_size(height: int, width: int) -> tuple[int, int]:
    """Return the largest multiples of 32 that are no larger than a frame."""
    return height // STRIDE * STRIDE, width // STRIDE * STRIDE


@torch.inference_mode()
def pool_frame(backbone: nn.Module, image: np.ndarray, masks: np.ndarray,
               ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Pool a frame under masks, once for each pooling.

    image: RGB uint8 [H, W, 3]; masks float32 [R, height, width], multiples of 32.
    Returns pooling -> (inside, vectors), see Pooled.
    """
    device = next(backbone.parameters()).device
    tensor = functional.interpolate(normalize(image)[None].to(device), size=masks.shape[1:],
                                    mode='bilinear', align_corners=False)
    features = backbone(tensor)
    clip = isinstance(backbone, OpenClipBackbone)
    dense = backbone.dense(features) if clip else features[STRIDE]
    cover = torch.from_numpy(masks)[None].to(device)
    shares = functional.avg_pool2d(cover, STRIDE)
    logits = functional.avg_pool2d(cover, 4).clamp(FIRM, 1 - FIRM).logit()
    found = {}
    for pooling in POOLINGS:
        weights = cell_weights(logits, tuple(dense.shape[-2:]), pooling)
        vectors = backbone.embed(dense, weights) if clip else mask_pool(dense, weights)
        total = weights.sum((2, 3))
        inside = torch.where(total > 0, (weights * shares).sum((2, 3)) / total, torch.nan)
        found[pooling] = inside[0].double().cpu().numpy(), vectors[0].float().cpu().numpy()
    return found


def pool_split(backbone: nn.Module, data_set: DataSet, classes: Sequence[int], every: int,
               limit: int | None) -> dict[str, Pooled]:
    """Pool each every-th frame of a split; returns pooling -> Pooled."""
    ids, areas = [], []
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in POOLINGS}
    for index, item in enumerate(frames(data_set, limit, 'pooled')):
        if index % every:
            continue
        label = data_set.read_label(item)
        found = regions_of(label, classes, fitting_size(*label.shape))
        if not len(found[0]):
            continue
        ids.append(found[0])
        areas.append(found[1])
        for name, part in pool_frame(backbone, read_image(item.image), found[2]).items():
            parts[name].append(part)
    return {name: Pooled(np.concatenate(areas), np.concatenate(ids),
                         *(np.concatenate(column) for column in zip(*parts[name])))
            for name in POOLINGS}


def told(training: Pooled, validation: Pooled) -> np.ndarray:
    """
    Return bool [R], whether a linear probe of the training split tells a region's class.

    The probe learns from regions of 1,000 pixels and more alone: it knows what classes look like,
    as a text does, and not what is left of small ones. A region of which nothing is left is not
    told.
    """
    probe = LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto')
    learned = training.kept & (training.area >= LARGE)
    probe.fit(training.vectors[learned], training.label[learned])
    return (probe.predict(validation.vectors) == validation.label) & validation.kept


def summary(pooled: Pooled, right: np.ndarray | None) -> dict[str, dict[str, float]]:
    """
    Return figures by area of the regions.

    masks: how many there are; kept: share of which anything is left; inside: mean share of what
    is pooled that lies in the region, nothing being 0; recall: share of right, where it is known.
    """
    figures = {}
    for name, (low, high) in BINS.items():
        chosen = (pooled.area >= low) & (pooled.area < high)
        count = int(chosen.sum())
        values = {'kept': pooled.kept, 'inside': np.nan_to_num(pooled.inside)}
        if right is not None:
            values['recall'] = right
        figures[name] = {'masks': count} | {
            key: float(value[chosen].mean()) if count else float('nan')
            for key, value in values.items()}
    return figures


def write_pooling(backbone: nn.Module, title: str, folder: str | Path,
                  anomalies: DataSet | None, splits: tuple[DataSet, DataSet] | None, *,
                  every: int = 1, limit: int | None = None) -> str:
    """
    Measure and write pooling.json and pooling.md; returns the Markdown.

    title: of the backbone; anomalies: a set whose masks are of class 1; splits: training and
    validation of a labelled set, for recall; every: n, each n-th frame of the training split;
    limit: only the first frames of each set.
    """
    figures: dict[str, Any] = {'backbone': title}
    lines = [f'# Pooling under masks, {title}', '']
    if splits is not None:
        classes = range(len(splits[0].classes))
        learned = pool_split(backbone, splits[0], classes, every, limit)
        seen = pool_split(backbone, splits[1], classes, 1, limit)
        found = {name: summary(seen[name], told(learned[name], seen[name])) for name in POOLINGS}
        lines += _table(splits[1].key, found)
        figures[splits[1].key] = found
    if anomalies is not None:
        seen = pool_split(backbone, anomalies, [1], 1, limit)
        found = {name: summary(seen[name], None) for name in POOLINGS}
        lines += _table(anomalies.key, found)
        figures[anomalies.key] = found
    write(folder, 'pooling', figures, lines)
    return '\n'.join(lines)


def _table(name: str, figures: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    keys = [key for key in next(iter(figures.values()))['under 1,000'] if key != 'masks']
    lines = [f'## {name}', '', '| area, pixels | masks | ' + ' | '.join(
        f'{key}, {pooling}' for key in keys for pooling in POOLINGS) + ' |',
        '|---' * (2 + len(keys) * len(POOLINGS)) + '|']
    for area in BINS:
        cells = [f'{figures[pooling][area][key]:.3f}' for key in keys for pooling in POOLINGS]
        lines.append(f'| {area} | {figures[POOLINGS[0]][area]["masks"]} | {" | ".join(cells)} |')
    return [*lines, '']
