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

"""What the few-shot benchmark sees in a picture: the closed set, regions of every kind, pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from owseg_ros.readout.reference import rba
from owseg_training.closed_set import load_network
from owseg_training.data.datasets import DataSet
from owseg_training.mask_regions import MaskRegions
from owseg_training.mca import MetaChannelRegions
from owseg_training.network.metric_head import MetricHead
from owseg_training.novel_regions import embed_pixels, RegionTally, tally_regions
from owseg_training.regions import connected_regions, Frame, read_frame
from owseg_training.urs import UncertaintyRegions
import torch
from torch.nn import functional

URS, MASKS, CLOSED_SET, LABELS = 'URS', 'masks', 'closed-set regions', 'true regions'
ANOMALOUS, SUPERVISED_MASKS = 'anomalous regions', 'masks after outlier supervision'
SEPARATIONS = (URS, MASKS, CLOSED_SET, ANOMALOUS, SUPERVISED_MASKS, LABELS)
REGIONS, PIXELS = 'regions', 'pixels'
# Share of known pixels that an anomaly mask may have, and of how many training pictures.
FALSE_ALARMS, ALARM_FRAMES = 0.05, 24
# Smaller regions are left out: pixels of a CamVid picture, and of its channels.
MIN_AREA, MIN_CELLS = 64, 2


@dataclass(eq=False)
class SeenFrame:
    """
    A picture that the networks have seen.

    frame: without its class scores; meta: meta channels [K, h, w] by name of their training;
    label, predicted: uint8 [H, W]; tallies: by separation; pixels: embeddings [D, h, w] of every
    cell by head.  shape: (L, P), see novel_regions.tally_regions.
    """

    frame: Frame
    meta: dict[str, np.ndarray]
    label: np.ndarray
    predicted: np.ndarray
    shape: tuple[int, int]
    pixels: dict[str, np.ndarray]
    tallies: dict[str, RegionTally] = field(default_factory=dict)


class FrameReader:
    """
    The networks of a benchmark, which share all but their metric heads and meta channels.

    regions, pixels: folders of the runs with the metric heads; channels: of those with meta
    channels, by name; outliers: of outlier supervision, which leaves the pixel features as they
    are; training: known classes, on which the threshold of its anomaly score is calibrated.
    URS has the settings of the paper's Road Anomaly and the softmax of the per-pixel head's
    logits, as in the paper.
    """

    def __init__(self, regions: Path, pixels: Path, channels: Mapping[str, Path],
                 outliers: Path, training: DataSet) -> None:
        self.network, self.config = load_network(regions)
        self.heads: dict[str, MetricHead] = {
            REGIONS: self.network.metric_head, PIXELS: load_network(pixels)[0].metric_head}
        self._meta = {name: load_network(folder)[0] for name, folder in channels.items()}
        self._supervised = load_network(outliers)[0]
        self._training = training
        self._separations = {URS: UncertaintyRegions(150.0, 0.4, min_area=MIN_AREA),
                             MASKS: MaskRegions(min_area=MIN_AREA)}

    def read(self, image: np.ndarray) -> tuple[Frame, dict[str, np.ndarray]]:
        """Return what the network says about RGB uint8 [H, W, 3], and meta channels by name."""
        return (frame := read_frame(self.network, image, self.config)), self.meta(frame)

    @torch.inference_mode()
    def meta(self, frame: Frame) -> dict[str, np.ndarray]:
        """Return the meta channels of a frame, [K, h, w] by name of their training."""
        features = torch.from_numpy(frame.features)[None]
        return {name: network.meta_channels(features)[0, network.num_classes:].numpy()
                for name, network in self._meta.items()}

    @torch.inference_mode()
    def pixel_logits(self, frame: Frame) -> np.ndarray:
        """Return the logits of the per-pixel head, float32 [K, H, W]."""
        logits = self.network.pixel_classifier(torch.from_numpy(frame.features)[None])
        return functional.interpolate(logits, size=frame.image.shape[:2], mode='bilinear',
                                      align_corners=False)[0].numpy()

    def separate(self, frame: Frame, name: str) -> np.ndarray:
        """Return the regions of URS or MASKS, int32 [H, W]."""
        scores = self.pixel_logits(frame) if name == URS else frame.scores
        return self._separations[name](replace(frame, scores=scores))

    def supervised_frame(self, image: np.ndarray) -> Frame:
        """Return what the network after outlier supervision says about RGB uint8 [H, W, 3]."""
        return read_frame(self._supervised, image, self.config)

    @cached_property
    def alarm(self) -> float:
        """Return the RbA score that FALSE_ALARMS of the known training pixels exceed."""
        items = self._training.items
        scores = []
        for item in items[::max(1, len(items) // ALARM_FRAMES)]:
            image, label = self._training.read(item)
            score = rba(self.supervised_frame(image).scores)
            scores.append(score[label < len(self._training.classes)][::16])
        return float(np.quantile(np.concatenate(scores), 1 - FALSE_ALARMS))

    def see(self, image: np.ndarray, label: np.ndarray, labels: int,
            pixels: bool = True) -> SeenFrame:
        """
        Read a picture and count all regions that need no shots.

        label: uint8 [H, W], ids from `labels` on are void; pixels: whether to embed all cells.
        """
        frame, meta = self.read(image)
        predicted = frame.scores.argmax(0).astype(np.uint8)
        cells = {name: embed_pixels(head, frame.features)
                 for name, head in self.heads.items()} if pixels else {}
        seen = SeenFrame(replace(frame, scores=frame.scores[:0]), meta, label, predicted,
                         (labels, len(frame.scores)), cells)
        for name in (URS, MASKS):
            self.add_tally(seen, name, self.separate(frame, name))
        supervised = self.supervised_frame(image)
        odd = rba(supervised.scores) > self.alarm
        self.add_tally(seen, ANOMALOUS, connected_regions(odd.astype(np.int32), MIN_AREA))
        self.add_tally(seen, SUPERVISED_MASKS, self.separate(supervised, MASKS))
        self.add_tally(seen, CLOSED_SET, connected_regions(
            predicted.astype(np.int32) + 1, MIN_AREA))
        present = np.append(np.unique(label[label < labels]), 255)
        self.add_tally(seen, LABELS, np.where(
            label < labels, np.searchsorted(present, label) + 1, 0).astype(np.int32))
        return seen

    def add_tally(self, seen: SeenFrame, name: str, regions: np.ndarray) -> None:
        """Count regions, int32 [H, W], of a picture under a name."""
        seen.tallies[name] = tally_regions(
            self.heads[REGIONS], regions, seen.frame.features, seen.label, seen.predicted,
            seen.shape)

    def meta_tally(self, seen: SeenFrame, name: str, chosen: np.ndarray) -> RegionTally:
        """Count the regions of chosen meta channels, bool [K], once for each choice."""
        key = f'{name} {"".join("01"[int(on)] for on in chosen)}'
        if key not in seen.tallies:
            separation = MetaChannelRegions(chosen, min_area=MIN_CELLS)
            self.add_tally(seen, key, separation(replace(seen.frame, meta=seen.meta[name])))
        return seen.tallies[key]
