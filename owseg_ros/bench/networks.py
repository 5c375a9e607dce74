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
from typing import Any, Optional

import cv2
import numpy as np
from owseg_ros.bench.memory import Gpu, GpuMemory
from owseg_ros.bench.peers import CPU, PeerPipeline, PeerRun
from owseg_ros.bench.timing import interleave, peak_memory, ratio
from owseg_ros.engine import NetworkOutput
from owseg_ros.engine.onnx import one_line
from owseg_ros.frame import Frame
from owseg_ros.readout import ALL_MAPS
from owseg_ros.segmenter import Segmenter

Step = Callable[[], None]

ALL_ROW, IDS_ROW, NETWORK_ROW = (
    'owseg_ros, all maps', 'owseg_ros, ids only', 'owseg_ros, network only')


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = frame.shape[1] > size[0]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _groups(frames: Sequence[np.ndarray], batch: int) -> list[list[np.ndarray]]:
    """Return as many batches as there are frames, each beginning with another one."""
    return [[frames[(start + i) % len(frames)] for i in range(batch)]
            for start in range(len(frames))]


def _turns(groups: Sequence[Any], call: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return a function that calls with one group of frames after the other."""
    state = [0]

    def turn() -> Any:
        state[0] += 1
        return call(groups[state[0] % len(groups)])

    return turn


class _Segment:
    """Segments batches of frames, one after the other, and keeps what the parts of it took."""

    def __init__(self, segmenter: Segmenter, groups: Sequence[Any], maps=ALL_MAPS) -> None:
        self._turn = _turns(groups, lambda group: segmenter.segment(group, maps))
        self._parts: list[tuple[float, float, float]] = []
        # The kernels of a readout on a GPU are made in the background.
        self()
        segmenter.readout.wait()

    def __call__(self) -> None:
        found = self._turn()
        self._parts.append((found[0].preprocess_ms, found[0].network_ms,
                            sum(one.readout_ms for one in found)))

    def medians(self, last: int) -> dict[str, float]:
        """Return the medians of the last calls: of whole batches, in ms."""
        return dict(zip(('preprocess_ms', 'network_ms', 'readout_ms'),
                        map(float, np.median(self._parts[-last:], axis=0))))


def _network(segmenter: Segmenter, frames: Sequence[np.ndarray],
             batch: int) -> Callable[[], Any]:
    """Return what runs pre-processing and network alone; masks stay where they are read out."""
    groups = [[Frame(frame) for frame in group] for group in _groups(frames, batch)]
    return _turns(groups, lambda group: segmenter.engine.infer(
        group, region_embeddings=False, masks_on_device=segmenter.readout.masks_on_device))


def measure_network(segmenter: Segmenter, frames: Sequence[np.ndarray], batches: Sequence[int],
                    repeats: int, step: Step = lambda: None) -> list[dict[str, Any]]:
    """Measure pre-processing and network for batches of frames; rows by batch."""
    timings = interleave({str(batch): _network(segmenter, frames, batch) for batch in batches},
                         repeats, step)
    rows = []
    for batch in batches:
        statistics = timings[str(batch)].statistics()
        rows.append({'batch': batch, **statistics, 'ms_per_frame': statistics['p50_ms'] / batch,
                     'frames_per_s': 1e3 * batch / statistics['p50_ms']})
    return rows


def measure_segmenter(segmenter: Segmenter, frames: Sequence[np.ndarray],
                      sizes: Sequence[tuple[int, int]], repeats: int,
                      step: Step = lambda: None,
                      memory: Optional[GpuMemory] = None) -> list[dict[str, Any]]:
    """
    Measure the whole Segmenter, all maps, for frames of sizes (width, height); rows by size.

    memory: of the GPU, from before the Segmenter was opened.
    """
    calls = {size: _Segment(segmenter, _groups([_resized(frame, size) for frame in frames], 1))
             for size in sizes}
    timings = interleave({str(size): call for size, call in calls.items()}, repeats, step)
    rows = []
    for size, call in calls.items():
        statistics = timings[str(size)].statistics()
        rows.append({'width': size[0], 'height': size[1], **statistics,
                     'frames_per_s': 1e3 / statistics['p50_ms'], **call.medians(repeats),
                     'memory_mib': peak_memory(call),
                     'gpu_memory_mib': memory and memory.after(call)})
        step()
    return rows


def measure_pipeline(open_peer: Callable[[], PeerPipeline],
                     open_ours: Callable[[PeerPipeline], Segmenter], run: PeerRun,
                     frames: Sequence[np.ndarray], size: tuple[int, int], batches: Sequence[int],
                     repeats: int, gpu: Optional[Gpu], left_out: dict[str, str],
                     step: Step = lambda: None) -> tuple[list[dict[str, Any]], NetworkOutput]:
    """
    Measure another pipeline and the Segmenter on the same network; rows by batch.

    run: of the peer; frames: are brought to size (width, height); gpu: whose memory is measured,
    of the peer first and then of ours, None for no measure of it; left_out: is told what of the
    peer failed, and why. Times are until results are on the host. The Segmenter makes all maps;
    its row 'ids only' makes what the other pipeline makes. Returns also what the network says
    of the first frame.
    """
    frames = [_resized(frame, size) for frame in frames]
    groups = {batch: _groups(frames, batch) for batch in batches}
    memory = GpuMemory(gpu)
    peer = open_peer()
    taken: dict[tuple[int, str], Optional[float]] = {}
    for batch in batches:
        for name, made in peer.calls.items():
            try:
                taken[batch, name] = memory.after(lambda: made.call(groups[batch][0]))
            except Exception as error:
                # Whatever another library raises: the rest is measured all the same.
                left_out[f'{name}, {peer.title}, {batch} of {size[0]}x{size[1]}'] = (
                    f'{type(error).__name__}: {one_line(error)}')
            step()
    memory = GpuMemory(gpu)
    segmenter = open_ours(peer)
    rows = []
    for batch in batches:
        ours = {ALL_ROW: _Segment(segmenter, groups[batch]),
                IDS_ROW: _Segment(segmenter, groups[batch], {'semantic'})}
        held = memory.after(ours[ALL_ROW])
        theirs = {name: made for name, made in peer.calls.items() if (batch, name) in taken}
        timings = interleave({
            **ours, NETWORK_ROW: _network(segmenter, frames, batch),
            **{name: _turns(groups[batch], made.call) for name, made in theirs.items()}},
            repeats, step)
        rows.append({
            'network': peer.title, 'width': size[0], 'height': size[1], 'batch': batch,
            'engine': segmenter.engine.description, 'peer': peer.where,
            'times': {name: timing.statistics() for name, timing in timings.items()},
            'parts': ours[ALL_ROW].medians(repeats),
            'gpu_memory_mib': {ALL_ROW: held, **{name: taken[batch, name] for name in theirs}},
            'alike': [name for name, made in theirs.items()
                      if made.precision == run.precisions[-1]
                      and (run.device != CPU) == segmenter.engine.on_gpu],
            'ratios': {name: {row: ratio(timings[name], timings[row]) for row in ours}
                       for name in theirs}})
    output = segmenter.engine.infer([Frame(frames[0])])
    masks, probabilities = peer.outputs(frames[0])
    difference = {
        'mask_logits': _difference(masks, output.mask_logits[0]),
        'class_probabilities': _difference(probabilities, output.class_probabilities[0])}
    return [{**row, 'difference': difference} for row in rows], output


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest |a - b| / max(1, |a|)."""
    return float((np.abs(a - b) / np.maximum(1, np.abs(a))).max())
