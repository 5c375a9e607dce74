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
"""The network and the whole Segmenter, by themselves and beside another project's pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from owseg_ros.bench.peers import PeerPipeline
from owseg_ros.bench.timing import interleave, peak_memory, ratio
from owseg_ros.frame import Frame
from owseg_ros.segmenter import Segmenter

Step = Callable[[], None]


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = frame.shape[1] > size[0]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _turns(frames: Sequence[Any], call: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return a function that calls with one frame after the other."""
    state = [0]

    def turn() -> Any:
        state[0] += 1
        return call(frames[state[0] % len(frames)])

    return turn


def measure_network(segmenter: Segmenter, frames: Sequence[np.ndarray], batches: Sequence[int],
                    repeats: int, step: Step = lambda: None) -> list[dict[str, Any]]:
    """Measure pre-processing and network for batches of frames; rows by batch."""
    def run(batch: int) -> Callable[[], Any]:
        groups = [[Frame(frames[(start + i) % len(frames)]) for i in range(batch)]
                  for start in range(len(frames))]
        return _turns(groups, lambda group: segmenter.engine.infer(
            group, region_embeddings=False))

    timings = interleave({str(batch): run(batch) for batch in batches}, repeats, step)
    rows = []
    for batch in batches:
        statistics = timings[str(batch)].statistics()
        rows.append({'batch': batch, **statistics, 'ms_per_frame': statistics['p50_ms'] / batch,
                     'frames_per_s': 1e3 * batch / statistics['p50_ms']})
    return rows


def measure_segmenter(segmenter: Segmenter, frames: Sequence[np.ndarray],
                      sizes: Sequence[tuple[int, int]], repeats: int,
                      step: Step = lambda: None) -> list[dict[str, Any]]:
    """Measure the whole Segmenter, all maps, for frames of sizes (width, height); rows by size."""
    parts: dict[tuple[int, int], list[tuple[float, float, float]]] = {size: [] for size in sizes}

    def run(size: tuple[int, int]) -> Callable[[], Any]:
        def segment(frame: np.ndarray) -> None:
            found = segmenter(frame)
            parts[size].append((found.preprocess_ms, found.network_ms, found.readout_ms))

        return _turns([_resized(frame, size) for frame in frames], segment)

    calls = {size: run(size) for size in sizes}
    # The kernels of a readout on a GPU are made in the background.
    calls[sizes[0]]()
    segmenter.readout.wait()
    timings = interleave({str(size): call for size, call in calls.items()}, repeats, step)
    rows = []
    for size, call in calls.items():
        statistics = timings[str(size)].statistics()
        medians = np.median(parts[size][-repeats:], axis=0)
        rows.append({'width': size[0], 'height': size[1], **statistics,
                     'frames_per_s': 1e3 / statistics['p50_ms'],
                     **dict(zip(('preprocess_ms', 'network_ms', 'readout_ms'),
                                map(float, medians))),
                     'memory_mib': peak_memory(call)})
        step()
    return rows


def measure_pipeline(peer: PeerPipeline, segmenter: Segmenter, frames: Sequence[np.ndarray],
                     size: tuple[int, int], repeats: int,
                     step: Step = lambda: None) -> dict[str, Any]:
    """
    Measure another pipeline and the Segmenter on the same network, frames of size (width, height).

    The Segmenter makes all maps; its row 'ids only' makes what the other pipeline makes.
    """
    frames = [_resized(frame, size) for frame in frames]
    calls = {'owseg_ros, all maps': _turns(frames, segmenter),
             'owseg_ros, ids only': _turns(
                 frames, lambda frame: segmenter(frame, maps={'semantic'})),
             'owseg_ros, network only': _turns(
                 [[Frame(frame)] for frame in frames], segmenter.engine.infer),
             **{name: _turns(frames, call) for name, call in peer.calls.items()}}
    timings = interleave(calls, repeats, step)
    output = segmenter.engine.infer([Frame(frames[0])])
    masks, probabilities = peer.outputs(frames[0])
    return {
        'network': peer.title, 'width': size[0], 'height': size[1],
        'difference': {
            'mask_logits': _difference(masks, output.mask_logits[0]),
            'class_probabilities': _difference(probabilities, output.class_probabilities[0])},
        'times': {name: timing.statistics() for name, timing in timings.items()},
        'ratios': {name: {ours: ratio(timings[name], timings[ours]) for ours in calls
                          if ours.startswith('owseg_ros') and 'network' not in ours}
                   for name in peer.calls}}


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest |a - b| / max(1, |a|)."""
    return float((np.abs(a - b) / np.maximum(1, np.abs(a))).max())
