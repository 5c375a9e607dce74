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
Compare the fast CPU readout with the reference, side by side in one run.

Run: python test/bench/bench_readout.py [--threads N] [--output 480x640] [--bundle FOLDER IMAGES].
With a bundle, its network's output on the images is read out. Without, three networks are
imitated, see owseg_ros.bench.imitation. `owseg bench` compares with the published order in torch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import time

import cv2
import numpy as np
from owseg_ros.bench.imitation import imitate, KINDS
from owseg_ros.bundle import load_bundle
from owseg_ros.engine import create_engine
from owseg_ros.frame import Frame
from owseg_ros.readout import cpu, reference
from owseg_ros.readout.maps import ALL_MAPS, QUERY_MAPS, ReadoutSettings


def network_outputs(arguments, network: tuple[int, int]):
    """Yield (name, mask logits [N, h, w], class probabilities [N, K]) to read out."""
    if arguments.bundle:
        engine = create_engine(load_bundle(arguments.bundle[0]), threads=arguments.threads)
        for path in arguments.bundle[1:]:
            output = engine.infer([Frame(cv2.imread(path), 'bgr')])
            yield Path(path).name, output.mask_logits[0], output.class_probabilities[0]
        return
    for kind in KINDS:
        yield kind, *imitate(kind, arguments.queries, arguments.classes,
                             (network[0] // 4, network[1] // 4))


def query_weights(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return weights [N, Q]: each query means one class, as a synonym does."""
    columns = np.arange(count) % probabilities.shape[1]
    return np.ascontiguousarray(probabilities[:, columns], np.float32)


def best_of(call, repeats: int) -> float:
    """Return the fastest of some calls in ms, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main():
    """Print one JSON line for each network output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--bundle', nargs='+', help='folder of a bundle, then images')
    parser.add_argument('--queries', type=int, default=100)
    parser.add_argument('--classes', type=int, default=11)
    parser.add_argument('--network', default='352x480', help='height x width')
    parser.add_argument('--output', default='480x640', help='height x width')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--tolerance', type=float, default=cpu.TOLERANCE)
    parser.add_argument('--repeats', type=int, default=20)
    arguments = parser.parse_args()
    network = tuple(int(part) for part in arguments.network.split('x'))
    output = tuple(int(part) for part in arguments.output.split('x'))
    settings = ReadoutSettings(anomaly_threshold=0.4, min_area=64)
    readout = cpu.CpuReadout(arguments.tolerance, arguments.threads)
    if arguments.bundle:
        spec = load_bundle(arguments.bundle[0]).input
        network = (spec.height, spec.width)
    for kind, masks, probabilities in network_outputs(arguments, network):
        task = (masks, probabilities, network, output, settings)
        exact = reference.class_scores(masks, probabilities, network)
        error = float(np.abs(readout.scores(masks, probabilities, network) - exact).max())
        fast = best_of(lambda: readout(*task), arguments.repeats)
        slow = best_of(lambda: reference.read_out(*task), 1)
        row = {'network': kind, 'fast_ms': round(fast, 2), 'reference_ms': round(slow, 1),
               'ratio': round(slow / fast, 1),
               'evaluated_share': round(readout.exact_fraction, 3), 'max_error_L': error}
        for maps in (('semantic',), ('anomaly_score',), ('anomaly_mask',)):
            row[f'{maps[0]}_only_ms'] = round(
                best_of(lambda: readout(*task, maps=maps), arguments.repeats), 2)
        row['scores_ms'] = round(best_of(
            lambda: readout.scores(masks, probabilities, network), arguments.repeats), 2)
        for count in (2, 8, 64):
            queries = {'query_weights': query_weights(probabilities, count),
                       'query_thresholds': np.full(count, 0.5, np.float32)}
            for name, maps in (('only', QUERY_MAPS), ('and_all', QUERY_MAPS | ALL_MAPS)):
                row[f'{count}_queries_{name}_ms'] = round(
                    best_of(lambda: readout(*task, maps=maps, **queries), arguments.repeats), 2)
        print(json.dumps(row))


if __name__ == '__main__':
    main()
