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
Time the readout on the GPU against torch in the official order, and against the bandwidth bound.

Run: python test/bench/bench_gpu_readout.py [--network 1024x2048] [--output 1080x1920] [--half].
Without a GPU it says so and measures nothing.

The official order of operations (RbA, Mask2Former) enlarges all masks, takes their sigmoids, then
einsum with the class probabilities, tanh, sum and argmax; its results stay on the GPU, and so do
those of the kernels that are timed against it: GPU time by CUDA events, the kernels many times in
a CUDA graph, on so many copies of masks and maps that what they read and write of them is four
times as large as the L2 cache. `frame_ms` is what a frame takes in all, its maps on the host. The
bound is the time that the GPU needs to read the mask logits that matter once and to write the
maps once, at the bandwidth that it reaches on a copy. With --half the official order runs in
float16 too; the errors are against float32. What is read out is imitated as in bench_readout.py:
"crisp" masks, "soft" ones, and the worst case "dense".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
import math
import statistics
import time
from typing import Any

from bench_readout import imitate
import numpy as np
from owseg_ros.readout import gpu, GpuReadout, GpuReadoutError
from owseg_ros.readout.maps import ReadoutSettings
from owseg_ros.readout.readout import Task
from owseg_ros.readout.scores import Rba


LAUNCHES = 20
CACHES = 4


def official(torch: Any, masks: Any, probabilities: Any, network: tuple[int, int],
             output: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Return RbA, argmax and max of L, in the order of the published code."""
    def enlarge(planes: Any, size: tuple[int, int]) -> Any:
        return torch.nn.functional.interpolate(
            planes[None], size=size, mode='bilinear', align_corners=False)[0]

    levels = torch.einsum('qk,qyx->kyx', probabilities, enlarge(masks, network).sigmoid())
    if output != network:
        levels = enlarge(levels, output)
    best, ids = levels.max(dim=0)
    return 1 - levels.tanh().sum(dim=0), ids, best


def gpu_time(torch: Any, call: Callable[[], Any], repeats: int) -> float:
    """Return the median time on the GPU in ms, after some calls that warm up."""
    times = []
    for index in range(repeats + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if index >= 5:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def moved_bytes(readout: GpuReadout, masks: Any, outputs: dict[str, Any]) -> float:
    """Return what a frame has to read and write: the masks that matter, and the maps."""
    return readout.kept_fraction * masks.nbytes + sum(
        tensor.nbytes for tensor in outputs.values())


def copies_beyond(cache: int, moved: float) -> int:
    """Return how many frames to take in turns so that none finds its own in a cache of bytes."""
    return max(2, math.ceil(CACHES * cache / moved))


def kernel_time(torch: Any, readout: GpuReadout, task: Task, masks: Any, outputs: dict[str, Any],
                repeats: int) -> float:
    """Return the time of the kernels alone in ms."""
    cache = torch.cuda.get_device_properties(masks.device).L2_cache_size
    copies = copies_beyond(cache, moved_bytes(readout, masks, outputs))
    # The first writes the maps that are compared.
    calls = [readout.prepare(task, masks.clone() if index else masks,
                             readout.outputs(task) if index else outputs)
             for index in range(copies)]
    launches = copies * math.ceil(LAUNCHES / copies)
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(launches):
            calls[index % copies]()
    return gpu_time(torch, graph.replay, repeats) / launches


def wall_time(call: Callable[[], Any], repeats: int) -> float:
    """Return the median time of a call that waits for the GPU, in ms."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def peak(torch: Any, call: Callable[[], Any]) -> float:
    """Return how much GPU memory a call takes beyond what is held, in MB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def bandwidth(torch: Any, repeats: int) -> float:
    """Return the bytes a second that the GPU reads and writes in a copy of 1 GiB."""
    source = torch.empty(1 << 28, device='cuda')
    target = torch.empty_like(source)
    elapsed = gpu_time(torch, lambda: target.copy_(source), repeats)
    return 2 * source.nbytes / (elapsed / 1e3)


def measure(torch: Any, kind: str, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Return the figures of one kind of masks."""
    network, output = options.network, options.output or options.network
    masks, probabilities = imitate(
        kind, options.queries, options.classes, (network[0] // 4, network[1] // 4))
    dtype = torch.float16 if options.half else torch.float32
    there = torch.from_numpy(masks).cuda().to(dtype)
    columns = torch.from_numpy(probabilities).cuda()
    none = np.empty((options.queries, 0), np.float32), np.empty(0, np.float32)
    task = Task(
        mask_logits=there, probabilities=probabilities, network_size=network,
        output_size=output, outlier=None, query_weights=none[0], query_thresholds=none[1],
        score=Rba(), min_confidence=0.0, semantic=True, confidence=True, ids=False,
        query_mask=False, query_score=False, winning=False)
    readout = GpuReadout()
    outputs = readout.outputs(task)

    def one() -> None:
        readout.launch(task, there, readout.outputs(task))

    def reference() -> tuple[Any, Any, Any]:
        return official(torch, there, columns.to(dtype), network, output)

    def frame() -> Any:
        return readout(there, probabilities, network, output, settings)

    settings = ReadoutSettings(anomaly_threshold=0.4, min_area=64)
    # Before it is timed, because it says how many queries matter.
    readout.launch(task, there, outputs)
    kernel_ms = kernel_time(torch, readout, task, there, outputs, options.repeats)
    official_ms = gpu_time(torch, reference, options.repeats)
    score, ids, _ = official(torch, there.float(), columns, network, output)
    moved = moved_bytes(readout, there, outputs)
    return {
        'masks': kind, 'kernel_ms': round(kernel_ms, 4), 'official_ms': round(official_ms, 4),
        'times_as_fast': round(official_ms / kernel_ms, 1),
        'bound_ms': round(1e3 * moved / rate, 4),
        'share_of_bound': round(1e3 * moved / rate / kernel_ms, 3),
        'queries_kept': round(readout.kept_fraction, 3),
        'frame_ms': round(wall_time(frame, options.repeats), 3),
        'kernel_mb': round(peak(torch, one), 1),
        'official_mb': round(peak(torch, reference), 1),
        'max_score_error': float((outputs['score'] - score).abs().max()),
        'labels_that_differ': float((outputs['semantic'] != ids).float().mean())}


def size_of(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH."""
    height, width = text.split('x')
    return int(height), int(width)


def main() -> None:
    """Print one JSON line about the machine and one for each kind of masks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--network', type=size_of, default=(1024, 2048), help='height x width')
    parser.add_argument('--output', type=size_of, help='height x width (default: that of network)')
    parser.add_argument('--queries', type=int, default=100)
    parser.add_argument('--classes', type=int, default=19)
    parser.add_argument('--half', action='store_true', help='mask logits in float16')
    parser.add_argument('--repeats', type=int, default=50)
    parser.add_argument('--tile', type=size_of, help='rows x columns of a tile, to try others')
    options = parser.parse_args()
    try:
        gpu.require_gpu_readout()
    except GpuReadoutError as error:
        print(f'Nothing was measured, there is no GPU: {error}')
        return
    if gpu.interpreted():
        print('Nothing was measured: TRITON_INTERPRET is set, so that no kernel runs on a GPU')
        return
    if options.tile:
        gpu.TILE_ROWS, gpu.TILE_COLUMNS = options.tile
        gpu.REGISTERS = max(gpu.REGISTERS, 32 * options.tile[0] * options.tile[1])
    import torch
    import triton

    rate = bandwidth(torch, options.repeats)
    print(json.dumps({
        'gpu': torch.cuda.get_device_name(), 'torch': torch.__version__,
        'triton': triton.__version__, 'cuda': torch.version.cuda,
        'copy_gb_per_s': round(rate / 1e9, 1), 'network': options.network,
        'output': options.output or options.network, 'queries': options.queries,
        'classes': options.classes, 'half': options.half, 'tile': options.tile}), flush=True)
    for kind in ('crisp', 'soft', 'dense'):
        print(json.dumps(measure(torch, kind, options, rate)), flush=True)


if __name__ == '__main__':
    main()
