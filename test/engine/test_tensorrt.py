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
The engine tensorrt as far as it goes without a GPU: graph, keys, cache, what is missing.

What touches TensorRT is checked against the stubs of its bindings, where they are at hand
(support.tensorrt_stubs); with TensorRT and a GPU the test marked gpu runs it.
"""

from dataclasses import replace
import importlib.util
import os
from pathlib import Path
import stat
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
from owseg_ros.engine import EngineError, OnnxEngine
from owseg_ros.engine import tensorrt as engine_module
from owseg_ros.engine import TensorrtOptions
from owseg_ros.engine.cache import (
    CacheFileError, default_cache_folder, Device, EngineCache, EngineKey)
from owseg_ros.engine.precision import batch_of, precision_of
from owseg_ros.engine.status import RUNNING, StateMachine
from owseg_ros.engine.tensorrt import (
    build_engine, calibration_images, engine_key, find_or_build, from_cache, network_sha256,
    prepare_graph, require_tensorrt, require_torch_cuda, TensorrtEngine, write_graph)
from owseg_ros.frame import Frame
from owseg_ros.segmenter import Segmenter
import pytest
from support.tensorrt_stubs import given_stubs, problems, VARIABLE
from support.tiny_bundle import make_tiny_bundle, paint

GPU_CODE = Path(engine_module.__file__).with_name('tensorrt_gpu.py')
ORIN = Device('10.3.0', 'Orin', '8.7')
KEY = EngineKey('ab' * 32, ORIN, 'fp16', (1, 2, 2))


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp('bundle') / 'tiny', work=1)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for index, color in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        cv2.imwrite(str(folder / f'{index}.png'), paint(48, 32, color)[..., ::-1])
    return folder


# Keys and files

@pytest.mark.parametrize('change', [
    {'network_sha256': 'ac' * 32}, {'precision': 'fp32'}, {'batch': (1, 4, 4)},
    {'calibration_sha256': 'ad' * 32}, {'device': replace(ORIN, tensorrt='10.3.1')},
    {'device': replace(ORIN, gpu='Thor')}, {'device': replace(ORIN, compute_capability='8.6')}])
def test_every_part_of_the_key_names_another_file(change, tmp_path):
    cache = EngineCache(tmp_path)
    other = replace(KEY, **change)
    assert cache.path(KEY) == cache.path(replace(KEY)) != cache.path(other)
    cache.store(KEY, b'plan')
    assert cache.load(KEY) == b'plan' and cache.load(other) is None


def test_files_are_written_whole_and_found_again(tmp_path):
    cache = EngineCache(tmp_path / 'a' / 'b')
    plan = os.urandom(10_000) + b'\n'
    path = cache.store(KEY, plan)
    cache.store_timing(ORIN, b'timed')
    again = EngineCache(tmp_path / 'a' / 'b')
    assert again.load(KEY) == plan and again.load_timing(ORIN) == b'timed'
    assert again.load_timing(replace(ORIN, gpu='Thor')) is None
    assert sorted(path.parent.iterdir()) == sorted([path, cache.timing_path(ORIN)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize('damage, message', [
    (lambda data: data[:-1], 'damaged: 3 of 4 bytes'),
    (lambda data: data[:-1] + b'x', 'damaged: its checksum'),
    (lambda data: data.replace(b'{"bytes"', b'{"bytes'), 'damaged: its header'),
    (lambda data: data.replace(b'{"bytes"', b'{"sizes"'), 'damaged: its header'),
    (lambda data: data.replace(b'Orin', b'Thor'), 'foreign: it was made for gpu Thor'),
    (lambda data: data.replace(b'"engine"', b'"timing"'), 'foreign: it holds no engine'),
    (lambda data: b'ftrt' + data, 'no engine file of this version'),
    (lambda data: b'', 'no engine file of this version')])
def test_damaged_and_foreign_files_are_refused(tmp_path, damage, message):
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, b'plan')
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CacheFileError, match=message):
        cache.load(KEY)
    machine = StateMachine()
    assert from_cache(lambda: cache.load(KEY), machine) is None
    assert message.split(':')[0] in machine.status.notes[0]
    assert machine.status.notes[0].endswith('it is made again')
    cache.store(KEY, b'new')
    assert cache.load(KEY) == b'new'


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(EngineError, match='cannot be written.*OWSEG_ENGINE_CACHE'):
        EngineCache(tmp_path / 'file').store(KEY, b'plan')


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv('OWSEG_ENGINE_CACHE', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_cache_folder() == tmp_path / 'owseg_ros' / 'engines'
    monkeypatch.setenv('OWSEG_ENGINE_CACHE', str(tmp_path / 'mine'))
    assert EngineCache().folder == tmp_path / 'mine'


def test_external_weights_are_part_of_the_network(bundle):
    assert network_sha256(bundle) == bundle.network_sha256
    found = {network_sha256(replace(bundle, files={
        **bundle.files, 'network.onnx.data': sha})) for sha in ('00', '01')}
    assert len(found | {bundle.network_sha256}) == 3


def test_an_engine_is_built_once_and_its_timings_go_to_the_next_build(bundle, tmp_path):
    options, seen = TensorrtOptions(cache=tmp_path), []

    def build(graph, timings):
        seen.append((precision_of(graph.path), graph.batch, timings))
        return b'plan %d' % len(seen), b'timed %d' % len(seen)

    def get(options=options, device=ORIN, **more):
        machine = StateMachine()
        built = find_or_build(bundle, options, machine, device, build, **more)
        return built.plan, built.cached, len(machine.status.notes)

    assert get() == (b'plan 1', False, 0) and get() == (b'plan 1', True, 0)
    assert get(replace(options, max_batch=2)) == (b'plan 2', False, 0)
    assert get(device=replace(ORIN, gpu='Thor')) == (b'plan 3', False, 0)
    assert get(force=True) == (b'plan 4', False, 0) and get() == (b'plan 4', True, 0)
    assert seen == [('fp16', (1, 1, 1), None), ('fp16', (1, 2, 2), b'timed 1'),
                    ('fp16', (1, 1, 1), None), ('fp16', (1, 1, 1), b'timed 2')]
    for path in tmp_path.iterdir():
        path.write_bytes(b'damaged')
    assert get() == (b'plan 5', False, 2) and get() == (b'plan 5', True, 0)
    assert seen[-1][2] is None


def test_a_quantised_engine_is_found_without_quantising(bundle, images, tmp_path):
    options = TensorrtOptions('int8', images, cache=tmp_path / 'cache')

    def get():
        machine = StateMachine(progressed=lambda share, step: steps.append(step))
        steps = []
        return find_or_build(bundle, options, machine, ORIN,
                             lambda graph, timings: (b'plan', b'timed')).cached, steps

    assert get() == (False, ['looking for the engine', 'preparing the network'])
    assert get() == (True, ['looking for the engine'])
    cv2.imwrite(str(images / '3.png'), paint(48, 32, (9, 9, 9)))
    assert not get()[0]


def test_timings_are_kept_where_there_are_some(bundle, tmp_path):
    for timings in (b'', b'timed'):
        find_or_build(bundle, TensorrtOptions(cache=tmp_path), StateMachine(), ORIN,
                      lambda graph, before: (b'plan', timings), force=True)
        assert EngineCache(tmp_path).timing_path(ORIN).exists() == bool(timings)


def test_an_engine_that_cannot_be_kept_is_used_all_the_same(bundle, tmp_path):
    (tmp_path / 'file').write_text('')
    machine = StateMachine()
    built = find_or_build(bundle, TensorrtOptions(cache=tmp_path / 'file' / 'cache'), machine,
                          ORIN, lambda graph, timings: (b'plan', b''))
    assert built.plan == b'plan' and not built.cached and not built.kept
    assert any('cannot be written' in note for note in machine.status.notes)


# The graph

def run(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(['mask_logits'], {'image': image})[0]


def test_fp16_is_what_auto_makes_of_a_network_in_fp32(bundle, tmp_path):
    graph = write_graph(bundle, TensorrtOptions(max_batch=3), tmp_path / 'out' / 'fp16.onnx')
    assert (graph.precision, graph.batch, graph.fixed_batch) == ('fp16', (1, 3, 3), 0)
    assert precision_of(graph.path) == 'fp16' and precision_of(bundle.network) == 'fp32'
    image = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    a, b = run(bundle.network, image), run(graph.path, image)
    assert 0 < np.abs(a - b).max() < 0.2
    assert prepare_graph(bundle, TensorrtOptions('fp32'), tmp_path).path == bundle.network


def test_int8_takes_its_ranges_from_images(bundle, images, tmp_path):
    options = TensorrtOptions('int8', calibration=images)
    graph = prepare_graph(bundle, options, tmp_path)
    model = onnx.load(graph.path)
    assert precision_of(graph.path) == 'int8' == graph.precision
    assert {node.op_type for node in model.graph.node} >= {'QuantizeLinear', 'Conv'}
    cv2.imwrite(str(images / '3.png'), paint(48, 32, (9, 9, 9)))
    again = prepare_graph(bundle, options, tmp_path)
    assert graph.calibration_sha256 != again.calibration_sha256 != ''
    assert engine_key(bundle, graph, ORIN) != engine_key(bundle, again, ORIN)
    quantised = replace(bundle, network=Path(again.path))
    assert prepare_graph(quantised, TensorrtOptions(), tmp_path).path == again.path
    with pytest.raises(EngineError, match='in int8, which cannot become fp16: export it in fp32'):
        prepare_graph(quantised, TensorrtOptions('fp16'), tmp_path)


def test_the_graphs_are_in_what_tensorrt_supports(bundle, images, tmp_path):
    check = pytest.importorskip('owseg_training.tensorrt_support').check
    for precision in ('fp32', 'fp16', 'int8'):
        graph = prepare_graph(bundle, TensorrtOptions(precision, images), tmp_path)
        # The tiny network's own Shape, Slice and Expand are not what this is about.
        assert [f for f in check(graph.path).findings if f.operator in (
            'Cast', 'Conv', 'QuantizeLinear', 'DequantizeLinear')] == []


def test_a_fixed_batch_stays(bundle, tmp_path):
    model = onnx.load(bundle.network)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / 'fixed.onnx')
    fixed = replace(bundle, network=tmp_path / 'fixed.onnx')
    assert batch_of(fixed.network, 'image') == 2
    graph = prepare_graph(fixed, TensorrtOptions('fp32', max_batch=8), tmp_path)
    assert (graph.batch, graph.fixed_batch) == ((2, 2, 2), 2)


def test_calibration_images_are_what_the_network_sees(bundle, images, tmp_path):
    found = list(calibration_images(bundle, images))
    assert [image.shape for image in found] == [(3, 64, 96)] * 3
    red = (np.array([255, 0, 0]) - bundle.input.mean) / bundle.input.std
    np.testing.assert_allclose(found[0][:, 8, 8], red, rtol=1e-5)
    with pytest.raises(EngineError, match='is no folder'):
        list(calibration_images(bundle, images / '0.png'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(EngineError, match='INT8 cannot be calibrated: .* holds no images'):
        list(calibration_images(bundle, tmp_path / 'empty'))
    with pytest.raises(EngineError, match='INT8 needs a folder of images'):
        prepare_graph(bundle, TensorrtOptions('int8'), tmp_path)


@pytest.mark.parametrize('options, message', [
    ({'precision': 'int4'}, 'choose from auto, fp32, fp16, int8'),
    ({'max_batch': 0}, 'max_batch'), ({'workspace_mib': -1}, 'workspace_mib')])
def test_options_are_checked(options, message):
    with pytest.raises(EngineError, match=message):
        TensorrtOptions(**options)


# What may be missing

def test_tensorrt_that_is_missing_or_broken_is_told_apart(tmp_path, monkeypatch, bundle):
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    with pytest.raises(EngineError, match='not installed: pip install tensorrt'):
        build_engine(bundle, TensorrtOptions(cache=tmp_path / 'cache'), StateMachine())
    assert not (tmp_path / 'cache').exists()
    monkeypatch.delitem(sys.modules, 'tensorrt')
    (tmp_path / 'tensorrt.py').write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r'does not load: libnvinfer\.so\.10: cannot open'):
        require_tensorrt()


def test_torch_without_cuda_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(EngineError, match='needs torch.*pip install torch'):
        require_torch_cuda('tensorrt')
    monkeypatch.undo()
    torch = pytest.importorskip('torch')
    if torch.cuda.is_available():
        pytest.skip('torch has CUDA here')
    with pytest.raises(EngineError, match='without CUDA|does not start|no GPU'):
        require_torch_cuda('tensorrt')


# What touches TensorRT

@pytest.fixture(params=given_stubs() or [None])
def stub(request):
    if request.param is None:
        pytest.skip(f'{VARIABLE} names no stubs of the TensorRT bindings')
    if importlib.util.find_spec('mypy') is None:
        pytest.skip('mypy is not installed')
    return request.param


def test_the_gpu_code_fits_the_bindings(stub, tmp_path):
    assert problems(GPU_CODE, stub, tmp_path) == []


def test_the_check_against_the_bindings_can_fail(stub, tmp_path):
    text = GPU_CODE.read_text()
    for right, wrong in (('add_optimization_profile(', 'add_profile('),
                         ('ignore_mismatch=', 'ignore='), ('IOMode.INPUT', 'IOMode.IN'),
                         ('error.node_name()', 'error.nodename()'),
                         ('deserialize_cuda_engine(plan)', 'deserialize_cuda_engine(plan, 1)')):
        assert right in text
        text = text.replace(right, wrong)
    wrong = tmp_path / 'wrong.py'
    wrong.write_text(text)
    assert len(problems(wrong, stub, tmp_path)) >= 5


@pytest.mark.gpu
@pytest.mark.parametrize('precision, tolerance', [('fp32', 1e-3), ('fp16', 0.2)])
def test_values_on_the_gpu(bundle, tmp_path, precision, tolerance):
    try:
        require_tensorrt()
    except EngineError as error:
        pytest.skip(str(error))
    options = TensorrtOptions(precision, max_batch=2, cache=tmp_path)
    engine = TensorrtEngine(bundle, options, StateMachine())
    engine.warm_up(2)
    frames = [Frame(paint(96, 64, color)) for color in ((255, 0, 0), (0, 0, 255), (9, 9, 9))]
    found, wanted = engine.infer(frames), OnnxEngine(bundle).infer(frames)
    np.testing.assert_allclose(found.mask_logits, wanted.mask_logits, atol=tolerance)
    np.testing.assert_allclose(
        found.class_probabilities, wanted.class_probabilities, atol=tolerance)
    there = engine.infer(frames, masks_on_device=True).mask_logits
    assert there.is_cuda
    np.testing.assert_array_equal(there.float().cpu().numpy(), found.mask_logits)
    machine = StateMachine()
    assert build_engine(bundle, options, machine).cached and machine.status.notes == ()


@pytest.mark.gpu
def test_masks_go_from_the_engine_to_the_readout_on_the_gpu(bundle, tmp_path):
    try:
        require_tensorrt()
    except EngineError as error:
        pytest.skip(str(error))
    segmenter = Segmenter(
        bundle, 'tensorrt', tensorrt=TensorrtOptions('fp32', cache=tmp_path), readout='gpu')
    assert segmenter.engine.wait(300).state == RUNNING
    image = paint(96, 64)
    np.testing.assert_allclose(
        segmenter(image).anomaly_score, Segmenter(bundle, readout='cpu')(image).anomaly_score,
        atol=5e-3)
    assert segmenter.readout.description.startswith('gpu') and segmenter.readout.note == ''
    segmenter.close()
