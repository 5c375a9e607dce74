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
"""The readout beside the published order of operations: time, memory and error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import numpy as np
from owseg_ros.bench.imitation import enlarge, imitate
from owseg_ros.bench.memory import first_readout_memory
from owseg_ros.bench.peers import Peers
from owseg_ros.bench.timing import interleave, ratio
from owseg_ros.engine.contract import NetworkOutput
from owseg_ros.readout import ALL_MAPS, CpuReadout, QUERY_MAPS, ReadoutSettings
from owseg_ros.readout.maps import STRIDES

# Cityscapes at full size, as RbA was published: 1024x2048, 100 queries, 19 classes.
SIZE, QUERIES, CLASSES = (1024, 2048), 100, 19
# What the published order gives too.
MAPS = frozenset({'semantic', 'confidence', 'anomaly_score'})

_PLAIN = {'anomaly_threshold': 0.5, 'min_area': 64}
_RESOLUTIONS = ((240, 320), (480, 640), (720, 1280), SIZE)
_COUNTS = (25, 50, 100, 200)
_CLASSES = (5, 11, 19, 65, 150)
_WORDS = (1, 4, 16, 64)
_BASE = (480, 640)
# Masks of many queries and pixels take a while to imitate; a part is repeated.
_IMITATED = (128, 256)

Step = Callable[[], None]


def _imitated(kind: str, count: int, classes: int, size: tuple[int, int]):
    low = tuple(-(-side // 4) for side in size)
    masks, probabilities = imitate(kind, count, classes, _IMITATED)
    return enlarge(masks, probabilities, low, classes) if kind != 'dense' else imitate(
        kind, count, classes, low)


def cases(outputs: dict[str, NetworkOutput]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Return name -> mask logits and class probabilities at the size of the target.

    outputs: of real networks on a real frame, by name.
    """
    low = tuple(side // 4 for side in SIZE)
    found = {}
    for name, output in outputs.items():
        masks = output.mask_logits[0]
        if not isinstance(masks, np.ndarray):
            masks = masks.cpu().numpy()
        found[name] = enlarge(masks, output.class_probabilities[0], low, CLASSES)
    found['imitated, crisp masks'] = _imitated('crisp', QUERIES, CLASSES, SIZE)
    found['worst case: noise, every query alive'] = _imitated('dense', QUERIES, CLASSES, SIZE)
    return found


def measure_readout(task: tuple[np.ndarray, np.ndarray], peers: Optional[Peers], threads: int,
                    repeats: int, step: Step = lambda: None) -> dict[str, Any]:
    """Measure one case at the size of the target, strides beside it."""
    masks, probabilities = task
    calls: dict[str, Callable[[], Any]] = {}

    def reader(stride: int) -> Callable[[], Any]:
        readout, settings = CpuReadout(threads=threads), ReadoutSettings(stride=stride, **_PLAIN)
        return lambda: readout(masks, probabilities, SIZE, SIZE, settings, MAPS)

    for stride in STRIDES:
        calls[f'stride {stride}'] = reader(stride)
    if peers is not None:
        order = peers.official_order(SIZE, threads)
        calls['official'] = lambda: order(masks, probabilities)
    everything = CpuReadout(threads=threads)
    calls['all maps'] = lambda: everything(
        masks, probabilities, SIZE, SIZE, ReadoutSettings(**_PLAIN), ALL_MAPS)

    found: dict[str, Any] = {
        'queries': len(masks), 'classes': probabilities.shape[1],
        'memory_mib': first_readout_memory(
            task, SIZE, MAPS, ReadoutSettings(**_PLAIN), threads)}
    step()
    timings = interleave(calls, repeats, step)
    found['times'] = {name: timing.statistics() for name, timing in timings.items()}
    probe = CpuReadout(threads=threads)
    probe(masks, probabilities, SIZE, SIZE, ReadoutSettings(**_PLAIN), MAPS)
    found['evaluated_share'] = probe.exact_fraction
    if peers is not None:
        ids, _, score = order(masks, probabilities)
        for stride in STRIDES:
            maps = calls[f'stride {stride}']()
            error = np.abs(maps.anomaly_score - score)
            found[f'stride {stride}'] = {
                'ratio': ratio(timings['official'], timings[f'stride {stride}']),
                'max_score_error': float(error.max()), 'mean_score_error': float(error.mean()),
                'label_disagreement': float((maps.semantic != ids).mean())}
    return found


def official_memory(task: tuple[np.ndarray, np.ndarray], peers: Peers,
                    threads: int) -> Optional[float]:
    """Return how many MiB the published order adds at the size of the target, on any masks."""
    return first_readout_memory(task, SIZE, MAPS, ReadoutSettings(**_PLAIN), threads,
                                peers.__name__)


def _point(peers: Optional[Peers], kind: str, count: int, classes: int, size: tuple[int, int],
           threads: int, repeats: int, step: Step) -> dict[str, float]:
    masks, probabilities = _imitated(kind, count, classes, size)
    readout, settings = CpuReadout(threads=threads), ReadoutSettings(**_PLAIN)
    calls: dict[str, Callable[[], Any]] = {
        'owseg_ros': lambda: readout(masks, probabilities, size, size, settings, MAPS)}
    if peers is not None:
        order = peers.official_order(size, threads)
        calls['official order'] = lambda: order(masks, probabilities)
    timings = interleave(calls, repeats, step)
    return {name: timing.statistics()['p50_ms'] for name, timing in timings.items()}


def measure_growth(peers: Optional[Peers], threads: int, repeats: int,
                   step: Step = lambda: None) -> dict[str, Any]:
    """
    Measure how the readout grows with resolution, queries, classes and text queries.

    Imitated crisp masks; the others are as in the target's case but at 640x480. Returns curves:
    name -> {'label', 'x', 'series': {name: ms}}.
    """
    def curve(label: str, values, arguments) -> dict[str, Any]:
        points = [_point(peers, 'crisp', *arguments(value), threads, repeats, step)
                  for value in values]
        return {'label': label, 'x': [float(np.prod(value)) / 1e6 if isinstance(value, tuple)
                                      else value for value in values],
                'series': {name: [point[name] for point in points] for name in points[0]}}

    found = {
        'resolution': curve('megapixels', _RESOLUTIONS, lambda v: (QUERIES, CLASSES, v)),
        'queries': curve('queries N of the network', _COUNTS, lambda v: (v, CLASSES, _BASE)),
        'classes': curve('classes K', _CLASSES, lambda v: (QUERIES, v, _BASE))}
    masks, probabilities = _imitated('crisp', QUERIES, CLASSES, _BASE)
    readout, settings = CpuReadout(threads=threads), ReadoutSettings(**_PLAIN)

    def ask(words: int) -> Callable[[], Any]:
        weights = np.ascontiguousarray(
            probabilities[:, np.arange(words) % CLASSES], np.float32)
        thresholds = np.full(words, 0.5, np.float32)
        return lambda: readout(masks, probabilities, _BASE, _BASE, settings, MAPS | QUERY_MAPS,
                               query_weights=weights, query_thresholds=thresholds)

    timings = interleave(
        {'0': lambda: readout(masks, probabilities, _BASE, _BASE, settings, MAPS),
         **{str(words): ask(words) for words in _WORDS}}, repeats, step)
    found['text_queries'] = {
        'label': 'text queries Q', 'x': [int(name) for name in timings], 'series': {
            'owseg_ros': [timing.statistics()['p50_ms'] for timing in timings.values()]}}
    return found


def growth_steps(peers: Optional[Peers], repeats: int) -> int:
    """Return how often measure_growth calls its step."""
    points = len(_RESOLUTIONS) + len(_COUNTS) + len(_CLASSES)
    return (repeats + 1) * (points * (1 if peers is None else 2) + len(_WORDS) + 1)
