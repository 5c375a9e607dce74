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
Time what taught classes cost, beside the same frames without them, interleaved in one run.

Run: python test/bench/bench_taught.py [--model FOLDER] [--frames N] [--rounds N]. Frames of the
procedural street; of each the largest anomalous region is a class. Cases, per frame: `plain`
without any; `kept`, frames that could be taught from; `taught`, their anomalous regions compared
too; `all masks`, the network's masks compared as well. The cost is the difference to `plain` in
the same round, and is given as a share of the network's time there: median and fastest.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from owseg_ros.bundle import default_bundle_path
from owseg_ros.novelty import prepare, PrototypeBook
from owseg_ros.readout import ALL_MAPS
from owseg_ros.scene import StreetScene
from owseg_ros.segmenter import Segmenter, TEACHABLE

SIZE = (640, 480)


def main():
    """Print a table of milliseconds and shares, and one JSON line with them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--model', default=str(default_bundle_path()), help='its folder')
    parser.add_argument('--frames', type=int, default=8, help='different frames')
    parser.add_argument('--rounds', type=int, default=20, help='passes over the frames')
    arguments = parser.parse_args()
    segmenter = Segmenter(arguments.model)
    segmenter.metric_head
    scene = StreetScene(*SIZE, fps=10)
    images = [scene.render(15 + 23 * index).image for index in range(arguments.frames)]
    book = PrototypeBook(segmenter.bundle)
    for index, image in enumerate(images):
        found = segmenter(image, taught=prepare(book.active, segmenter.bundle)).taught_regions
        if found:
            book.add_shot(f'thing {index}', found[0].embedding)
    cases = {
        'plain': (ALL_MAPS, None), 'kept': (ALL_MAPS | {TEACHABLE}, None),
        'taught': (ALL_MAPS | {TEACHABLE}, prepare(book.active, segmenter.bundle)),
        'all masks': (ALL_MAPS | {TEACHABLE},
                      prepare(book.active, segmenter.bundle, all_masks=True))}
    times = {name: [] for name in cases}
    network, regions = [], []
    for turn in range(arguments.rounds + 1):
        for image in images:
            for name, (maps, taught) in cases.items():
                start = time.perf_counter()
                result = segmenter(image, maps, taught=taught)
                times[name].append(1e3 * (time.perf_counter() - start))
                if name == 'plain':
                    network.append(result.network_ms)
                elif name == 'all masks':
                    regions.append(len(result.taught_regions))
    # The first round warms up.
    taken = {name: np.array(values[len(images):]).reshape(-1, len(images))
             for name, values in times.items()}
    network = np.array(network[len(images):]).reshape(-1, len(images))
    slow, fast = float(np.median(network)), float(network.min(axis=0).mean())
    print(f'{segmenter.bundle.name}, {segmenter.engine.description}: {len(book.active.classes)} '
          f'classes, {np.mean(regions):.1f} regions a frame with all masks; network '
          f'{slow:.1f} ms (fastest {fast:.1f})')
    print('| case | median ms | cost ms | share | fastest ms | cost ms | share |')
    print('|---|' + '---:|' * 6)
    report = {'network_ms': slow, 'network_fastest_ms': fast}
    for name, values in taken.items():
        cost = float(np.median(values - taken['plain']))
        least = float((values.min(axis=0) - taken['plain'].min(axis=0)).mean())
        print(f'| {name} | {np.median(values):.1f} | {cost:.2f} | {cost / slow:.1%} | '
              f'{values.min(axis=0).mean():.1f} | {least:.2f} | {least / fast:.1%} |')
        report[name] = {'median_ms': float(np.median(values)), 'cost_ms': cost,
                        'share': cost / slow, 'least_cost_ms': least, 'least_share': least / fast}
    print(json.dumps(report))


if __name__ == '__main__':
    main()
