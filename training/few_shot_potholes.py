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

"""Potholes in the few-shot benchmark: a class that no training picture has shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np
from owseg_training.data.datasets import data_root, open_data_set, read_image
from owseg_training.few_shot import choose_examples, Example, folder_examples
from owseg_training.few_shot_benchmark import ALL, compared, open_reader, Plan, Teacher
from owseg_training.few_shot_frames import SeenFrame, SEPARATIONS
from owseg_training.finished_runs import write_json
from tqdm import tqdm

SHOTS = 5
NAME = 'pothole'
# Each n-th frame of CamVid's validation split shows what is taken for a pothole on a road.
ROAD_FRAMES = 4


def measures(counts: np.ndarray, classes: int) -> dict[str, float]:
    """
    Return IoU, precision and recall of one taught class.

    counts: int64 [2, P + 1], see novel_regions: pixels that are not of the class and that are,
    by final class, the taught one last; classes: P.  A ratio of nothing is 0.
    """
    hits, false, missed = counts[1, classes:].sum(), counts[0, classes:].sum(), counts[
        1, :classes].sum()
    return {'IoU': float(hits / max(1, hits + false + missed)),
            'precision': float(hits / max(1, hits + false)),
            'recall': float(hits / max(1, hits + missed))}


def seen_by(seen: Iterable[SeenFrame], classes: int) -> dict[str, Any]:
    """Return the shares of the classes that the closed set sees most of in pictures, by id."""
    counts = sum(np.bincount(frame.predicted.ravel(), minlength=classes) for frame in seen)
    return {str(index): float(counts[index] / counts.sum())
            for index in np.argsort(-counts)[:4]}


def pothole_rows(plan: Plan) -> dict[str, Any]:
    """
    Teach potholes by SHOTS pictures and find them in all others; kept in the plan's folder.

    Returns {'rows': [{'selection', 'method', 'rule', 'IoU', 'precision', 'recall', 'road'}],
    'pictures', 'seen', 'seen_road'}: road is the share of a road's pixels that are taken for a
    pothole.  Raises DataError where the pictures are missing.
    """
    path = plan.out / 'results' / 'potholes.json'
    options = {'draws': plan.draws, 'methods': [*SEPARATIONS, *plan.meta_runs(ALL)],
               'iterations': None if plan.iterations is None else list(plan.iterations)}
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept['options'] == options:
            return kept['result']
    training = open_data_set('camvid', 'train', plan.data)
    reader = open_reader(plan, ALL, training)
    teacher = Teacher(reader, training)
    examples = folder_examples(Path(data_root(plan.data)) / 'potholes')
    frames = [reader.see(read_image(example.image), example.mask().astype(np.uint8), 2)
              for example in tqdm(examples, desc='potholes', leave=False, disable=None)]
    camvid = open_data_set('camvid', 'val', plan.data)
    road = [reader.see(*camvid.read(item), len(camvid.classes))
            for item in tqdm(camvid.items[::ROAD_FRAMES], desc='road', leave=False, disable=None)]
    names = [c.name for c in camvid.classes]
    rows = []
    for selection in plan.selections:
        shots = _choose(examples, selection)
        others = [frame for frame, example in zip(frames, examples) if example not in shots]
        classes = teacher.teach({NAME: shots})
        elsewhere = {(method, rule): counts for method, rule, counts in compared(
            teacher, classes, road, plan.meta_runs(ALL))}
        for method, rule, counts in compared(teacher, classes, others, plan.meta_runs(ALL), [1]):
            false = elsewhere.get((method, rule))
            rows.append({'selection': selection, 'method': method, 'rule': rule,
                         **measures(counts, len(names)),
                         'road': None if false is None else float(
                             false[:, len(names):].sum() / false.sum())})
        print(f'potholes {selection}: done', flush=True)
    result = {'rows': rows, 'pictures': len(examples), 'road_frames': len(road),
              'share': float(np.mean([(frame.label == 1).mean() for frame in frames]))}
    for key, seen in (('seen', frames), ('seen_road', road)):
        result[key] = {names[int(index)]: share
                       for index, share in seen_by(seen, len(names)).items()}
    write_json(path, {'options': options, 'result': result})
    return result


def _choose(examples: Sequence[Example], selection: str) -> list[Example]:
    kind, _, seed = selection.partition('_')
    return choose_examples(examples, SHOTS, kind, int(seed or 0))
