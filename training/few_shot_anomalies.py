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

"""Anomalies of the few-shot benchmark: max-logit, RbA and RAML's Q on RoadAnomaly (Table 1)."""

from __future__ import annotations

from collections.abc import Mapping
import json
from typing import Any

import cv2
import numpy as np
from owseg_ros.novelty.region_features import region_features
from owseg_ros.readout.reference import rba
from owseg_training.data.datasets import open_data_set
from owseg_training.evaluate import anomaly_metrics
from owseg_training.evaluate.evaluation import ScoreFile
from owseg_training.few_shot_benchmark import ALL, open_reader, Plan
from owseg_training.few_shot_frames import (
    CLOSED_SET, FrameReader, MASKS, MIN_AREA, REGIONS, URS)
from owseg_training.finished_runs import write_json
from owseg_training.novel_regions import as_regions, embed
from owseg_training.open_world import reduced, scaled_track
from owseg_training.prototypes import KNOWN_PROTOTYPES
from owseg_training.region_anomaly import known_similarity, region_anomaly
from owseg_training.regions import connected_regions, Frame
from tqdm import tqdm

FRAMES = 24
METRICS = ('AP', 'AuROC', 'FPR95', 'F1')


def logit_offset(reader: FrameReader, plan: Plan) -> float:
    """
    Return what makes the largest logits of the per-pixel head positive, from training pictures.

    Of each picture the lowest of a thousand counts: eq 5 multiplies, and a negative factor would
    turn the order.
    """
    training = open_data_set('camvid', 'train', plan.data)
    lowest = [np.quantile(reader.pixel_logits(reader.read(training.read(item)[0])[0]).max(0),
                          0.001)
              for item in training.items[::max(1, len(training.items) // FRAMES)]]
    return max(0.0, -float(min(lowest)))


class Scores:
    """The anomaly scores of a frame by name; prototypes: float [K, D] of the known classes."""

    def __init__(self, reader: FrameReader, prototypes: np.ndarray, offset: float) -> None:
        self.reader = reader
        self.prototypes = prototypes
        self.offset = offset

    def similarity(self, frame: Frame, regions: np.ndarray) -> np.ndarray:
        """Return P of each region, float [T] (RAML eq 4)."""
        means = region_features(as_regions(regions), frame.features, regions.shape)
        return known_similarity(embed(self.reader.heads[REGIONS], means), self.prototypes)

    def __call__(self, image: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return scores float32 [H, W] of RGB uint8 [H, W, 3], higher is stranger."""
        frame, _ = self.reader.read(image)
        logits = self.reader.pixel_logits(frame)
        urs = self.reader.separate(frame, URS)
        likeness = self.similarity(frame, urs)
        found = {
            'max-logit': -frame.scores.max(0),
            'RbA': rba(frame.scores),
            'RAML Q, URS': region_anomaly(frame.scores, urs, likeness),
            'RAML Q, URS, edges by pixel': region_anomaly(
                frame.scores, urs, likeness, edges='pixel'),
            'RAML Q, URS, each frame stretched': region_anomaly(
                frame.scores, urs, likeness, raml_paper=True)}
        classes = frame.scores.argmax(0).astype(np.int32) + 1
        for name, regions in ((MASKS, self.reader.separate(frame, MASKS)),
                              (CLOSED_SET, connected_regions(classes, MIN_AREA))):
            found[f'RAML Q, {name}'] = region_anomaly(
                frame.scores, regions, self.similarity(frame, regions))
        found['max-logit of the per-pixel head'] = -logits.max(0)
        found['RAML Q of the per-pixel head, URS'] = region_anomaly(
            logits, urs, likeness, offset=self.offset)
        supervised = self.reader.supervised_frame(image).scores
        found['max-logit after outlier supervision'] = -supervised.max(0)
        found['RbA after outlier supervision'] = rba(supervised)
        found['RAML Q after outlier supervision, URS'] = region_anomaly(
            supervised, urs, likeness)
        return found


def anomaly_rows(plan: Plan) -> list[dict[str, Any]]:
    """
    Measure all scores on RoadAnomaly, pooled over the set; kept in the plan's folder.

    Returns {'score': name, METRICS: float} each.  Raises DataError where the set is missing.
    """
    path = plan.out / 'results' / 'road_anomaly.json'
    options = {'max_width': plan.max_width,
               'iterations': None if plan.iterations is None else list(plan.iterations)}
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept['options'] == options:
            return kept['result']
    reader = open_reader(plan, ALL, open_data_set('camvid', 'train', plan.data))
    prototypes = np.load(plan.folder(ALL, REGIONS) / KNOWN_PROTOTYPES)['embeddings']
    scores = Scores(reader, prototypes, logit_offset(reader, plan))
    road = open_data_set('road_anomaly', root=plan.data)
    files: dict[str, ScoreFile] = {}
    labels = []
    try:
        for item in tqdm(road.items, desc='RoadAnomaly', leave=False, disable=None):
            image, label = road.read(item)
            labels.append(reduced(label, plan.max_width))
            size = labels[-1].shape[::-1]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            for name, score in scores(image).items():
                files.setdefault(name, ScoreFile()).append(score)
        track = scaled_track(road, road.items, plan.max_width)
        result = [{'score': name, **{metric: found[metric] for metric in METRICS}}
                  for name, file in files.items()
                  for found in (anomaly_metrics(file, labels, track=track),)]
    finally:
        for file in files.values():
            file.close()
    write_json(path, {'options': options, 'result': result})
    return result
