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
Compare the precisions of one model side by side: accuracy and time of the network.

Run: python test/bench/bench_precision.py FP32_BUNDLE OTHER_BUNDLE... [--data FOLDER]
     [--threads N] [--every N].
Each CamVid val frame goes through every bundle in turn, in one process, the order rotating, so
that a busy machine slows all of them alike.  Times are medians of the network alone (ms); the
ratio is the median over frames of the first bundle's time by the other's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from owseg_ros.segmenter import Segmenter
from owseg_training.data.datasets import CamVid
from owseg_training.evaluate.metrics import ConfusionMatrix


def main() -> None:
    """Print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bundles', nargs='+', type=Path, help='the first one is the reference')
    parser.add_argument('--data', help='folder of the data sets')
    parser.add_argument('--threads', type=int, default=0, help='0: one a core')
    parser.add_argument('--every', type=int, default=1, help='only every n-th frame')
    options = parser.parse_args()
    segmenters = [Segmenter(path, threads=options.threads) for path in options.bundles]
    for segmenter in segmenters:
        segmenter.warm_up()
    data_set = CamVid('val', options.data)
    items = data_set.items[::options.every]
    matrices = [ConfusionMatrix(s.bundle.num_classes) for s in segmenters]
    times = np.empty((len(items), len(segmenters)))
    for row, item in enumerate(items):
        image, label = data_set.read(item)
        for turn in range(len(segmenters)):
            index = (row + turn) % len(segmenters)
            result = segmenters[index](image, maps=frozenset({'semantic'}))
            matrices[index].add(result.semantic, label)
            times[row, index] = result.network_ms
    ratios = np.median(times[:, :1] / times, axis=0)
    report = []
    print(f'{len(items)} frames, {segmenters[0].engine.description}')
    print('| bundle | precision | mIoU | network ms | speed ratio |\n|---|---|---|---|---|')
    for index, segmenter in enumerate(segmenters):
        bundle = segmenter.bundle
        row = {'bundle': bundle.name, 'precision': bundle.provenance.get('precision', 'fp32'),
               'mIoU': matrices[index].mean_iou(),
               'network_ms': float(np.median(times[:, index])),
               'speed_ratio': float(ratios[index])}
        report.append(row)
        print(f'| {row["bundle"]} | {row["precision"]} | {row["mIoU"]:.4f} | '
              f'{row["network_ms"]:.1f} | {row["speed_ratio"]:.2f} |')
    print(json.dumps(report))


if __name__ == '__main__':
    main()
