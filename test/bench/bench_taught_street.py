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
How well one example tells the hazards of the procedural street apart, by their anomalous regions.

Run: python test/bench/bench_taught_street.py [--model FOLDER] [--seed N]. Every third frame of the
first cycle with a hazard in it; a region belongs to the hazard where their intersection over union
is above 0.3, else it is a false alarm. The example of each kind is the middle one of its regions.
Printed, for thresholds of the cosine: the share of the kind's own other regions, of those of the
other kinds and of the false alarms that would be named by it, if it alone were taught; and, with
one example of every kind, the share that is named right, without a threshold.
"""

from __future__ import annotations

import argparse

import numpy as np
from owseg_ros.bundle import default_bundle_path
from owseg_ros.novelty import prepare, PrototypeBook
from owseg_ros.scene import HAZARD_KINDS, StreetScene
from owseg_ros.segmenter import Segmenter

FALSE_ALARM = 'false alarm'
THRESHOLDS = (0.75, 0.85, 0.9, 0.95)


def regions(segmenter: Segmenter, seed: int) -> dict[str, np.ndarray]:
    """Return the embeddings of what is anomalous, float32 [n, D] for each kind."""
    scene = StreetScene(640, 480, seed=seed, fps=10)
    nothing = prepare(PrototypeBook(segmenter.bundle).active, segmenter.bundle)
    found: dict[str, list] = {kind: [] for kind in (*HAZARD_KINDS, FALSE_ALARM)}
    for event in scene.hazard_times():
        for index in range(event.first_index, event.last_index + 1, 3):
            truth = scene.render(index)
            for entry in segmenter(truth.image, taught=nothing).taught_regions:
                inside = np.zeros(truth.labels.shape, bool)
                inside[entry.region.window] = entry.region.inside
                union = np.count_nonzero(inside | truth.anomaly)
                iou = np.count_nonzero(inside & truth.anomaly) / union
                found[event.kind if iou > 0.3 else FALSE_ALARM].append(entry.embedding)
    return {kind: np.array(rows) for kind, rows in found.items() if rows}


def main():
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--model', default=str(default_bundle_path()), help='its folder')
    parser.add_argument('--seed', type=int, default=0, help='of the street')
    arguments = parser.parse_args()
    segmenter = Segmenter(arguments.model)
    found = regions(segmenter, arguments.seed)
    kinds = [kind for kind in found if kind != FALSE_ALARM]
    middle = {kind: len(found[kind]) // 2 for kind in kinds}
    shots = {kind: found[kind][middle[kind]] for kind in kinds}
    rest = {kind: np.delete(found[kind], middle[kind], axis=0) for kind in kinds}
    print(f'{segmenter.bundle.name}: regions '
          + ', '.join(f'{kind} {len(rows)}' for kind, rows in found.items()))
    print('| threshold | its own | other kinds | false alarms |')
    print('|---|---:|---:|---:|')
    for threshold in THRESHOLDS:
        columns = []
        for rows in (rest, {kind: np.concatenate([found[other] for other in kinds
                                                  if other != kind]) for kind in kinds},
                     {kind: found.get(FALSE_ALARM, np.empty((0, len(shots[kind]))))
                      for kind in kinds}):
            hits = [rows[kind] @ shots[kind] >= threshold for kind in kinds]
            columns.append(f'{np.concatenate(hits).mean():.2f}')
        print(f'| {threshold} | {" | ".join(columns)} |')
    prototypes = np.stack([shots[kind] for kind in kinds])
    right = [(rest[kind] @ prototypes.T).argmax(axis=1) == number
             for number, kind in enumerate(kinds)]
    print(f'one example of every kind: {np.concatenate(right).mean():.2f} of '
          f'{sum(map(len, right))} other regions named right')


if __name__ == '__main__':
    main()
