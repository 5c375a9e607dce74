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
What is special about the readout on the GPU: its kernel, its tiles, and what it does without one.

Its contract is tested in test_contract.py. Without a GPU the kernel runs in Triton's interpreter;
marked gpu are the tests that need a real one, or gain from it.
"""

import subprocess
import sys
import threading
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_ros.readout import (
    choice, ChosenReadout, CpuReadout, gpu, GpuReadout, GpuReadoutError, host_array, make_score,
    MaskHistory, ObjectSettings, reference, RoadSettings)
from owseg_ros.readout.cpu import SCORE_TOLERANCES, TOLERANCE
from owseg_ros.readout.maps import ALL_MAPS, QUERY_MAPS, ReadoutSettings
import pytest
from support.readouts import (
    assert_close, network, quarters, query_weights, ROUNDING, SETTINGS, tasks)

pytestmark = pytest.mark.usefixtures('gpu_readouts')

# Tiles with edges in all places, some too small to be looked through for flat masks.
TILES = [{'MAX_BLOCK': gpu.MAX_BLOCK}, {'TILE_ROWS': 16, 'TILE_COLUMNS': 32, 'MAX_BLOCK': 4},
         {'TILE_ROWS': 64, 'TILE_COLUMNS': 32, 'WINDOW_FLOATS': 0}, {'MAX_CHUNK': 4}]


@pytest.mark.gpu
@given(tasks(), st.sampled_from([0.0, TOLERANCE, 0.05]), st.sampled_from(TILES))
@settings(max_examples=12, deadline=None)
def test_agrees_with_the_reference(task, tolerance, tiles):
    with patch.multiple(gpu, **tiles):
        maps = GpuReadout(tolerance)(*task, SETTINGS)
    assert_close(maps, *task, SETTINGS, tolerance + ROUNDING)


@pytest.mark.gpu
@given(tasks(), st.integers(0, 2 ** 32 - 1), st.integers(1, 7), st.sampled_from(TILES))
@settings(max_examples=10, deadline=None)
def test_query_maps_agree_with_the_reference(task, seed, count, tiles):
    masks, _, size, output = task
    weights, thresholds = query_weights(seed, len(masks), count)
    with patch.multiple(gpu, **tiles):
        maps = GpuReadout()(*task, SETTINGS, QUERY_MAPS | ALL_MAPS, query_weights=weights,
                            query_thresholds=thresholds)
    scores = reference.class_scores(
        masks.astype(np.float64), weights.astype(np.float64), size, output)
    tolerance = TOLERANCE + ROUNDING
    np.testing.assert_allclose(maps.query_score, reference.query_score(scores), atol=tolerance)
    clear = (np.abs(scores - thresholds[:, None, None]) > tolerance).all(axis=0)
    reaching = np.sort(np.where(
        scores >= thresholds[:, None, None], scores,
        -1 - np.arange(count)[:, None, None]), axis=0)
    if count > 1:
        clear &= reaching[-1] - reaching[-2] > 2 * tolerance
    np.testing.assert_array_equal(
        maps.query_mask[clear], reference.query_mask(scores, thresholds)[clear])
    assert_close(maps, *task, SETTINGS, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize('tolerance', [1e-3, 0.02, 0.2])
@pytest.mark.parametrize('spread', [0.3, 2.0, 60.0])
def test_keeps_the_promised_bounds(tolerance, spread):
    """Whatever the masks: flat, rough or saturated, and queries that just matter or do not."""
    masks, probabilities = network(3, 24, 5, 16, 16, spread)
    probabilities[::3] *= tolerance
    with patch.multiple(gpu, TILE_ROWS=32, TILE_COLUMNS=32, MAX_BLOCK=8):
        maps = GpuReadout(tolerance)(masks, probabilities, (64, 64), (64, 64), SETTINGS)
    levels = reference.class_scores(
        masks.astype(np.float64), probabilities.astype(np.float64), (64, 64))
    np.testing.assert_allclose(maps.confidence, 255 * np.clip(levels.max(axis=0), 0, 1),
                               atol=0.5 + 255 * (tolerance + ROUNDING))
    np.testing.assert_allclose(maps.anomaly_score, reference.rba(levels),
                               atol=SCORE_TOLERANCES * (tolerance + ROUNDING))


@pytest.mark.gpu
def test_leaves_out_queries_that_do_not_matter_and_takes_flat_masks_whole():
    masks, probabilities = network(3, 20, 5, 16, 16, 6.0)
    probabilities[5:15] = 1e-9
    readout = GpuReadout()
    maps = readout(masks, probabilities, (64, 64), (64, 64), SETTINGS)
    assert readout.kept_fraction == 0.5
    masks[5:15] = np.nan  # they are not even read
    again = readout(masks, probabilities, (64, 64), (64, 64), SETTINGS)
    np.testing.assert_array_equal(again.anomaly_score, maps.anomaly_score)
    # A flat mask is one number a tile: its error is half of its range, times its weight.
    masks, probabilities = np.zeros((1, 8, 8), np.float32), np.full((1, 1), 0.5, np.float32)
    masks[0, 3, 3] = 1e-3
    rough, exact = GpuReadout(0.01), GpuReadout(0.0)
    task = (masks, probabilities, (32, 32), (32, 32), SETTINGS)
    assert np.ptp(rough(*task).anomaly_score) == 0 < np.ptp(exact(*task).anomaly_score)


@pytest.mark.gpu
def test_takes_tensors_of_any_precision():
    torch = pytest.importorskip('torch')
    masks, probabilities = network(5, 9, 4, 16, 16, 6.0)
    task = (probabilities, (64, 64), (70, 50), SETTINGS)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        tensor = torch.from_numpy(masks).to(dtype)
        found = GpuReadout()(tensor, *task)
        expected = CpuReadout()(tensor.float().numpy(), *task)
        np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, atol=2e-3)
        np.testing.assert_array_equal(host_array(tensor), tensor.float().numpy())


@pytest.mark.gpu
@pytest.mark.parametrize('chosen', [
    {'objects': ObjectSettings()}, {'road': RoadSettings((0, 1), min_road=0.001)},
    {'hysteresis': 0.2, 'hold_frames': 2, 'min_area': 6, 'mark_unknown': True,
     'objects': ObjectSettings(edge_radius=0), 'road': RoadSettings((2,), min_road=0.001),
     'min_confidence': 0.5}])
def test_what_looks_at_regions_is_that_of_the_cpu(chosen):
    chosen = ReadoutSettings(0.5, **chosen)
    readouts = CpuReadout(0.0), GpuReadout(0.0)
    histories = MaskHistory(), MaskHistory()
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    for seed in range(2):
        masks, probabilities = network(seed, 9, 4, 12, 16, 6.0)
        weights, thresholds = query_weights(seed, 9, 3)
        regions = quarters(np.random.default_rng(seed).random((4, 3)).astype(np.float32))
        cpu, found = (readout(
            masks, probabilities, (48, 64), (50, 70), chosen, ALL_MAPS | QUERY_MAPS, image=image,
            history=history, stamp=0.1 * seed, query_weights=weights,
            query_thresholds=thresholds, score_regions=regions)
            for readout, history in zip(readouts, histories))
        np.testing.assert_allclose(found.anomaly_score, cpu.anomaly_score, atol=1e-4)
        np.testing.assert_allclose(found.query_score, cpu.query_score, atol=1e-4)
        for name in ('semantic', 'anomaly_mask', 'query_mask'):
            assert (getattr(found, name) == getattr(cpu, name)).mean() > 0.995, name
        assert found.road_lost == cpu.road_lost


# What may be missing

def test_a_missing_part_is_named(monkeypatch):
    for name in ('torch', 'triton'):
        with monkeypatch.context() as context:
            context.setitem(sys.modules, name, None)
            with pytest.raises(GpuReadoutError, match=f'needs {name}: .*pip install {name}'):
                GpuReadout()


def test_without_a_gpu_or_the_interpreter_it_says_so(monkeypatch):
    torch = pytest.importorskip('torch')
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    with pytest.raises(GpuReadoutError, match='needs a GPU.*nvidia-smi.*readout: cpu'):
        GpuReadout()


def test_what_was_asked_for_and_cannot_run_falls_to_the_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, 'triton', None)
    task = (*network(1, 6, 3, 8, 8, 6.0), (32, 32), (32, 32), SETTINGS)
    readout = ChosenReadout('gpu', 1)
    assert readout.description == 'cpu' and 'pip install triton' in readout.note
    assert not readout.masks_on_device
    np.testing.assert_array_equal(readout(*task).semantic, CpuReadout()(*task).semantic)


def test_a_failure_at_a_frame_does_not_lose_it():
    masks, *rest = (*network(1, 6, 3, 8, 8, 6.0), (32, 32), (32, 32), SETTINGS)
    readout = ChosenReadout('gpu', 1)
    assert readout.description.startswith('gpu (triton') and readout.masks_on_device
    history = MaskHistory()
    with patch.object(GpuReadout, 'launch', side_effect=RuntimeError('out of memory')):
        maps = readout(masks, *rest, history=history)
    np.testing.assert_array_equal(maps.semantic, CpuReadout()(masks, *rest).semantic)
    assert 'RuntimeError: out of memory' in readout.note and readout.description == 'cpu'
    np.testing.assert_array_equal(readout(masks, *rest).semantic, maps.semantic)


@pytest.mark.parametrize('error', [
    RuntimeError('Failed to find C compiler.'), subprocess.CalledProcessError(1, ['gcc', 'a.c'])])
def test_what_triton_needs_to_launch_kernels_is_named(error):
    with patch.object(GpuReadout, 'launch', side_effect=error):
        with pytest.raises(GpuReadoutError, match='install gcc and the headers of Python'):
            GpuReadout()(*network(1, 6, 3, 8, 8, 6.0), (32, 32), (32, 32), SETTINGS)


def test_errors_of_the_call_are_not_those_of_the_gpu():
    readout = ChosenReadout('gpu', 1)
    masks, probabilities = network(1, 6, 3, 8, 8, 6.0)
    with pytest.raises(ValueError, match='sizes must be positive'):
        readout(masks, probabilities, (32, 0), (32, 32), SETTINGS)
    assert readout.note == ''


def test_auto_takes_the_cpu_for_what_is_on_the_cpu():
    task = (*network(1, 6, 3, 8, 8, 6.0), (32, 32), (32, 32), SETTINGS)
    readout = ChosenReadout('auto', 1)
    np.testing.assert_array_equal(
        readout(*task).anomaly_score, CpuReadout()(*task).anomaly_score)
    assert readout.description == 'cpu' and readout.note == '' and readout.masks_on_device
    assert not ChosenReadout('cpu').masks_on_device
    with pytest.raises(ValueError, match='choose from auto, cpu, gpu'):
        ChosenReadout('tpu')


@pytest.mark.parametrize('score', ['rba', 'uno'])
def test_auto_answers_from_the_cpu_while_kernels_are_made(score):
    """Here in the interpreter, with tensors that are only said to be on a GPU."""
    torch = pytest.importorskip('torch')
    masks, probabilities = network(1, 6, 4, 8, 8, 6.0)
    rest = (probabilities[:, :3], (32, 32), (30, 20), ReadoutSettings(
        0.5, score=make_score(score, outlier_class=True)), ALL_MAPS, probabilities[:, 3])
    readout = ChosenReadout('auto', 1)
    made, go_on = GpuReadout.launch, threading.Event()

    def launch(*arguments):
        assert go_on.wait(60)
        made(*arguments)

    with patch.object(choice, 'on_gpu', lambda array: True):
        with patch.object(GpuReadout, 'launch', launch):
            first = readout(torch.from_numpy(masks), *rest)
            assert readout.description == 'cpu'
            go_on.set()
            readout.wait(60)
        assert readout.description.startswith('gpu') and readout.note == ''
        second = readout(torch.from_numpy(masks), *rest)
    np.testing.assert_array_equal(
        first.anomaly_score, CpuReadout()(masks, *rest).anomaly_score)
    np.testing.assert_allclose(
        second.anomaly_score, first.anomaly_score, atol=2 * SCORE_TOLERANCES * TOLERANCE)


def test_auto_answers_from_the_cpu_while_the_kernel_for_another_kind_of_frame_is_made():
    """A frame of another size must not wait for a compiler."""
    torch = pytest.importorskip('torch')
    masks, probabilities = network(1, 6, 4, 8, 8, 6.0)
    readout = ChosenReadout('auto', 1)
    weights, thresholds = query_weights(3, len(masks), 2)
    sizes, asked = ((32, 32), (30, 20), SETTINGS), {
        'query_weights': weights, 'query_thresholds': thresholds}
    kinds = [(sizes, {}), (((32, 32), (31, 20), SETTINGS), {}), (sizes, {'maps': {'semantic'}}),
             (sizes, {'maps': ALL_MAPS | QUERY_MAPS, 'score_regions': lambda mask: (), **asked})]
    made, calls = GpuReadout.__call__, []

    def call(self, *arguments, **named):
        calls.append(threading.current_thread().name)
        return made(self, *arguments, **named)

    with patch.object(choice, 'on_gpu', lambda array: True), \
            patch.object(GpuReadout, '__call__', call):
        for rest, named in kinds:
            history = MaskHistory()
            for thread in ('make kernels', 'MainThread', 'MainThread'):
                maps = readout(torch.from_numpy(masks), probabilities, *rest, history=history,
                               **named)
                readout.wait(60)
                assert calls.pop() == thread and not calls
                assert maps.semantic.shape == rest[1]
        for rest, named in kinds:
            readout(torch.from_numpy(masks), probabilities, *rest, **named)
            assert calls.pop() == 'MainThread' and not calls
    assert readout.note == ''


def test_kernels_that_cannot_be_made_leave_the_cpu_at_work(caplog):
    torch = pytest.importorskip('torch')
    masks, *rest = (*network(1, 6, 3, 8, 8, 6.0), (32, 32), (32, 32), SETTINGS)
    for error in (RuntimeError('no compiler'), MemoryError('no room')):
        readout = ChosenReadout('auto', 1)
        with patch.object(choice, 'on_gpu', lambda array: True), \
                patch.object(GpuReadout, '__init__', side_effect=error):
            readout(torch.from_numpy(masks), *rest)
            readout.wait(60)
        assert readout.description == 'cpu' and readout.note == str(error)
        assert not readout.masks_on_device and str(error) in caplog.text


COMPILE = """
from types import SimpleNamespace

import numpy as np
from owseg_ros.readout import gpu, gpu_kernel, ReadoutSettings
from owseg_ros.readout.maps import ALL_MAPS, QUERY_MAPS
import torch
import triton
from triton.backends.compiler import GPUTarget


class Driver:
    def get_current_target(self):
        return GPUTarget('cuda', {capability}, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compiler:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *given, **named: self.compile(*given, grid=grid, **named)

    def compile(self, *given, **named):
        made = self.kernel.warmup(*given, **named)
        ptx = made.asm['ptx']
        print(self.kernel.fn.__name__, len(made.asm['cubin']), ptx.count('bar.sync'),
              ptx.count('shfl.sync'), ptx.count('.local'))


triton.runtime.driver.set_active(Driver())
gpu.require_gpu_readout, gpu.interpreted = (lambda: None), (lambda: True)
readout = gpu.GpuReadout()
readout._kernels = SimpleNamespace(screen=Compiler(gpu_kernel.screen),
                                   read_out=Compiler(gpu_kernel.read_out))
masks = torch.zeros(9, 16, 32, dtype=torch.float16)
probabilities = np.full((9, 3), 0.2, np.float32)
task = (64, 128), {output}, ReadoutSettings(0.5)
readout(masks, probabilities, *task)
readout(masks.float(), probabilities, *task, ALL_MAPS | QUERY_MAPS,
        query_weights=probabilities[:, :2], query_thresholds=np.ones(2, np.float32))
"""


@pytest.mark.parametrize('capability, output', [(90, (64, 128)), (87, (60, 90))])
def test_the_kernel_compiles_as_it_is_launched_for_gpus_that_are_not_here(
        capability, output, monkeypatch):
    """Triton has all it needs to build for an H100 (9.0) or an Orin (8.7) without one."""
    triton = pytest.importorskip('triton')
    if 'nvidia' not in triton.backends.backends:
        pytest.skip('this triton has no compiler for NVIDIA')
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    done = subprocess.run(
        [sys.executable, '-c', COMPILE.format(capability=capability, output=output)],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in made] == ['screen', 'read_out'] * 2
    assert min(int(row[1]) for row in made) > 1000
    # A thread has whole pixels: threads exchange nothing where queries add up.
    for name, _, barriers, shuffles, local in made:
        assert int(local) == 0
        if name == 'read_out':
            assert int(barriers) == int(shuffles) == 0


# The real thing

@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize('output', [(1024, 2048), (1080, 1920)])
def test_full_size_on_the_gpu(dtype, output):
    torch = pytest.importorskip('torch')
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    size, count, classes = (1024, 2048), 100, 19
    masks, probabilities = network(1, count, classes, 256, 512, 12.0)
    weights, thresholds = query_weights(1, count, 3)
    masks = masks.astype(dtype)
    task = (probabilities, size, output, SETTINGS, ALL_MAPS | QUERY_MAPS)
    queries = {'query_weights': weights, 'query_thresholds': thresholds}
    there = torch.from_numpy(masks).cuda()
    readout = GpuReadout()
    readout(there, *task, **queries)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = readout(there, *task, **queries)
    # Maps of 15 bytes a pixel, and a little beside them; all masks at full size would be 840 MB.
    assert torch.cuda.max_memory_allocated() - before < 40e6
    expected = CpuReadout(0.0, 0)(masks.astype(np.float32), *task, **queries)
    tolerance = SCORE_TOLERANCES * TOLERANCE + ROUNDING
    np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, atol=tolerance)
    np.testing.assert_allclose(found.query_score, expected.query_score, atol=tolerance)
    for name in ('semantic', 'query_mask'):
        assert (getattr(found, name) != getattr(expected, name)).mean() < 5e-4, name


@pytest.mark.gpu
def test_auto_moves_to_the_gpu_where_the_masks_are():
    torch = pytest.importorskip('torch')
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    masks, *rest = (*network(1, 12, 3, 32, 32, 6.0), (128, 128), (100, 90), SETTINGS)
    readout = ChosenReadout('auto', 1)
    first = readout(torch.from_numpy(masks).cuda(), *rest)
    readout.wait(120)
    assert readout.note == '' and readout.description.startswith('gpu')
    second = readout(torch.from_numpy(masks).cuda(), *rest)
    np.testing.assert_allclose(
        second.anomaly_score, first.anomaly_score, atol=2 * SCORE_TOLERANCES * TOLERANCE)
