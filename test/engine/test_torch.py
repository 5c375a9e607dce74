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
"""The engine torch: a program on the CPU against ONNX Runtime, what it refuses, and the GPU."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
import io
import json
from pathlib import Path
import shutil
import sys
import threading
import time
from types import SimpleNamespace
import zipfile

import numpy as np
from owseg_ros.bundle import load_bundle, write_bundle
from owseg_ros.engine import (
    create_engine, EngineError, OnnxEngine, TorchEngine, TorchOptions)
from owseg_ros.engine.program import check_program
from owseg_ros.engine.status import FALLBACK, RUNNING, StateMachine
from owseg_ros.engine.torch import read_program
from owseg_ros.frame import Frame
from owseg_ros.scene import StreetScene
from owseg_ros.segmenter import Segmenter
import pytest
from support.tiny_bundle import edit_manifest, make_tiny_bundle, paint, tiny_manifest

torch = pytest.importorskip('torch', reason='torch is not installed')
program = pytest.importorskip('owseg_training.program')
CPU = TorchOptions(device='cpu')
SIZE = (96, 64)


class Compact(torch.nn.Module):
    """A network of a few operators with all outputs; a real one is in training/test_export.py."""

    def __init__(self):
        super().__init__()
        self.masks = torch.nn.Conv2d(3, 5, 4, 4)
        self.norm = torch.nn.LayerNorm(5)
        self.classes = torch.nn.Linear(1, 4)
        self.texts = torch.nn.Conv2d(5, 16, 2, 2)

    def forward(self, image):
        """Return what NAMES lists."""
        masks = self.masks(image)
        features = self.norm(masks.movedim(1, -1)).movedim(-1, 1)
        texts = self.texts(features)
        # A constant, to be moved to the device of the program.
        places = torch.arange(texts.shape[2], device=image.device)[:, None] / 8
        texts = texts + places.cos()
        # The exporter writes down of what type it was before.
        pooled = torch.nn.functional.avg_pool2d(masks, 2).float()
        regions = torch.einsum('bnyx,bdyx->bnd', pooled, texts)
        return (masks, self.classes(masks.mean(dim=(2, 3))[..., None]), features,
                torch.nn.functional.normalize(regions, dim=2), texts)


NAMES = ('mask_logits', 'class_logits', 'pixel_features', 'region_embeddings', 'text_features')


def make_bundle(folder, batch):
    """Write a bundle of the bundle network, in ONNX and as a program."""
    torch.manual_seed(0)
    network, image = Compact().eval(), torch.zeros(batch or 2, 3, *SIZE[::-1])
    torch.onnx.export(
        network, (image,), str(folder / 'network.onnx'), input_names=['image'],
        output_names=list(NAMES), dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=None if batch else {'image': {0: torch.export.Dim('batch', max=64)}})
    program.export_program(network, NAMES, folder / 'network.pt2', SIZE, batch)
    manifest = tiny_manifest(width=SIZE[0], height=SIZE[1],
                             encoder=SimpleNamespace(space='none', dim=16))
    manifest['network']['program'] = 'network.pt2'
    return write_bundle(folder / 'bundle', manifest, {
        name: folder / name for name in ('network.onnx', 'network.pt2')})


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp('any_batch'), None)


@pytest.fixture(scope='module')
def single(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp('one_frame'), 1)


@pytest.fixture(scope='module')
def frames():
    scene = StreetScene(width=160, height=120)
    return [Frame(scene.render(index).image) for index in (0, 40)]


def copied(bundle, folder):
    """Return a copy of the folder of a bundle, to be changed."""
    return Path(shutil.copytree(bundle.path, folder / 'copy'))


def open_torch(bundle, options=CPU):
    return TorchEngine(bundle, options, StateMachine())


def difference(found, wanted):
    """Return the largest |a - b| / max(1, |b|)."""
    return float((np.abs(found - wanted) / np.maximum(1, np.abs(wanted))).max())


def test_equals_onnx_runtime_on_frames(bundle, frames):
    engine, onnx = open_torch(bundle), OnnxEngine(bundle, threads=1)
    asked = {'pixel_features': True, 'text_features': True}
    for batch in (frames, frames[:1]):
        found = engine.infer(batch, masks_on_device=True, **asked)
        wanted = onnx.infer(batch, **asked)
        for name in ('mask_logits', 'class_probabilities', 'pixel_features', 'text_features',
                     'region_embeddings', 'no_object_probabilities'):
            array = getattr(found, name)
            assert isinstance(array, np.ndarray) and array.dtype == np.float32
            assert difference(array, getattr(wanted, name)) <= 1e-4, name
    assert 'fp32' in engine.description and torch.__version__ in engine.description


def test_what_nobody_asks_for_is_not_computed(bundle, frames):
    engine = open_torch(bundle)
    whole = engine.infer(frames)
    part = engine.infer(frames, region_embeddings=False)
    assert part.region_embeddings is None and part.text_features is None
    np.testing.assert_allclose(part.mask_logits, whole.mask_logits, atol=1e-5)
    small, large = sorted(
        len(network._module.graph.nodes) for network in engine._networks.values())
    assert small < large


def test_results_belong_to_the_caller(bundle, frames):
    engine = open_torch(bundle)
    first = engine.infer(frames[:1])
    kept = first.mask_logits.copy()
    engine.infer(frames[1:])
    np.testing.assert_array_equal(first.mask_logits, kept)


@pytest.mark.parametrize('precision, tolerance', [('bf16', 0.05), ('fp16', 0.01)])
def test_half_precision_is_near(bundle, frames, precision, tolerance):
    engine = open_torch(bundle, TorchOptions('cpu', precision))
    found, wanted = engine.infer(frames), OnnxEngine(bundle, threads=1).infer(frames)
    assert 0 < difference(found.mask_logits, wanted.mask_logits) < tolerance
    assert difference(found.class_probabilities, wanted.class_probabilities) < tolerance
    assert found.mask_logits.dtype == np.float32


def test_the_program_moves_to_another_device_as_a_whole(bundle):
    """Nothing of it stays on the CPU, here told by the device that only knows shapes."""
    code = pytest.importorskip('owseg_ros.engine.torch_network')
    moved = code.Program(bundle.program.read_bytes(), 'meta')
    outputs = moved.module(['mask_logits', 'text_features'])(
        torch.zeros(2, 3, SIZE[1], SIZE[0], device='meta'))
    assert [tuple(output.shape)[:2] for output in outputs] == [(2, 5), (2, 16)]
    assert {output.device.type for output in outputs} == {'meta'}


def test_segmenter_on_torch_in_place_of_onnx(bundle, frames):
    found = Segmenter(bundle, 'torch', threads=1, torch=CPU)
    assert found.engine.wait(120).state == RUNNING
    assert found.engine.description.startswith('torch (fp32')
    wanted = Segmenter(bundle, threads=1)
    np.testing.assert_allclose(
        found(frames[0]).anomaly_score, wanted(frames[0]).anomaly_score, atol=2e-3)
    found.close()


def test_a_program_of_a_fixed_batch_runs_in_chunks(single, frames):
    engine, onnx = open_torch(single), OnnxEngine(single, threads=1)
    assert engine.fixed_batch == 1
    found, wanted = engine.infer(frames), onnx.infer(frames)
    assert found.mask_logits.shape == (2, 5, 16, 24)
    assert difference(found.mask_logits, wanted.mask_logits) <= 1e-4


def test_compiled_before_it_serves(bundle, frames):
    if shutil.which('g++') is None:
        pytest.skip('torch.compile needs a C++ compiler on the CPU')
    steps = []
    machine = StateMachine(progressed=lambda share, step: steps.append(step))
    engine = TorchEngine(bundle, TorchOptions('cpu', compiled=True), machine)
    assert steps == ['loading the program', 'compiling for 1 frames']
    wanted, found = OnnxEngine(bundle, threads=1).infer(frames[:1]), engine.infer(frames[:1])
    assert difference(found.mask_logits, wanted.mask_logits) <= 1e-4
    assert 'compiled' in engine.description
    with pytest.raises(EngineError, match='was stopped'):
        TorchEngine(bundle, TorchOptions('cpu', compiled=True), machine, lambda: True)


def test_every_number_of_cameras_is_warm_before_it_serves(bundle, single):
    for chosen, wanted in ((bundle, [1, 2, 3]), (single, [1])):
        seen = []
        engine = TorchEngine(chosen, TorchOptions('cpu', max_batch=3), StateMachine())
        run = engine._run
        engine._run = lambda names, batch: seen.append(len(batch)) or run(names, batch)
        assert engine.warm_up(3) > 0
        assert sorted(set(seen)) == wanted


# What is refused

def test_a_bundle_without_a_program_says_how_to_make_one(tmp_path):
    tiny = make_tiny_bundle(tmp_path / 'tiny')
    assert tiny.program is None
    engine = create_engine(tiny, 'torch', threads=1, torch=CPU)
    status = engine.wait(60)
    assert status.state == FALLBACK
    assert 'no torch program' in status.reason and 'owseg-train export --torch' in status.reason
    assert 'tensorrt' not in engine.description and 'torch failed' in engine.description
    assert len(engine.infer([Frame(paint(96, 64))]).mask_logits) == 1


def test_torch_or_cuda_that_is_missing_is_named(bundle, monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match='without CUDA|does not start|no GPU'):
            open_torch(bundle, TorchOptions())
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(EngineError, match='the engine torch needs torch: .*pip install torch'):
        open_torch(bundle)


@pytest.mark.parametrize('options, message', [
    ({'device': 'tpu'}, 'choose from cuda, cpu'), ({'max_batch': 0}, 'max_batch'),
    ({'precision': 'int8'}, 'choose from auto, fp32, fp16, bf16')])
def test_options_are_checked(options, message):
    with pytest.raises(EngineError, match=message):
        TorchOptions(**options)


def test_auto_is_half_precision_on_a_gpu_alone():
    assert TorchOptions().resolved_precision == 'fp16'
    assert CPU.resolved_precision == 'fp32'
    assert TorchOptions(precision='bf16').resolved_precision == 'bf16'


def test_a_program_that_changed_after_the_check_is_not_loaded(bundle, tmp_path):
    folder = copied(bundle, tmp_path)
    loaded = load_bundle(folder)
    with open(folder / 'network.pt2', 'ab') as stream:
        stream.write(b'x')
    with pytest.raises(EngineError, match='changed since the bundle was loaded'):
        read_program(loaded)
    (folder / 'network.pt2').unlink()
    with pytest.raises(EngineError, match='cannot be read'):
        read_program(loaded)


def test_a_program_of_another_network_is_refused(bundle, tmp_path):
    folder = copied(bundle, tmp_path)
    edit_manifest(folder, lambda manifest: manifest['network']['input'].update(width=128))
    with pytest.raises(EngineError, match='the program has .*do not belong together'):
        open_torch(load_bundle(folder))
    outputs = {**bundle.outputs, 'pixel_features': 'elsewhere'}
    with pytest.raises(EngineError, match="the output 'elsewhere' and the program has"):
        open_torch(replace(bundle, outputs=outputs))


def rewritten(content, change):
    """Return a program whose parts have gone through change(name, content)."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, 'w') as out:
        for entry in source.infolist():
            part = change(entry.filename.split('/', 1)[1], source.read(entry))
            if part is not None:
                out.writestr(entry.filename, part)
    return target.getvalue()


def in_part(name, change):
    """Return a change of the JSON in one part."""
    def apply(part, content):
        if part != name:
            return content
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()
    return apply


GRAPH, WEIGHTS = 'models/model.json', 'data/weights/model_weights_config.json'


@pytest.mark.parametrize('change, message', [
    (in_part(WEIGHTS, lambda table: next(iter(table['config'].values())).update(use_pickle=True)),
     'as a pickle'),
    (in_part(WEIGHTS, lambda table: next(iter(table['config'].values())).update(
        path_name='opaque_obj_0')), 'as a pickle'),
    (in_part(GRAPH, lambda graph: graph['graph_module']['graph']['nodes'][0].update(
        target='torch.os.system')), "calls 'torch.os.system'"),
    (in_part(GRAPH, lambda graph: graph['graph_module']['graph']['nodes'][0].update(
        target='_operator.attrgetter')), 'no operator of ATen'),
    (in_part(GRAPH, lambda graph: graph['graph_module']['graph']['sym_int_values'].update(
        evil={'as_expr': {'expr_str': 'exec(chr(105))', 'hint': None}})), 'has the shape'),
    (in_part(GRAPH, lambda graph: graph['graph_module']['module_call_graph'][0]['signature']
             .update(out_spec='[1, {"type": "os.path", "context": null}]')), 'something else'),
    (lambda part, content: b'x' if part == 'data/sample_inputs/model.pt' else content,
     'pickled sample inputs'),
    (lambda part, content: None if part == GRAPH else content, 'has no models/model.json'),
    (lambda part, content: b'{' if part == GRAPH else content, 'cannot be understood'),
    (lambda part, content: b'[1]' if part == WEIGHTS else content, 'cannot be understood')])
def test_programs_that_hold_more_than_numbers_and_operators_are_refused(bundle, change, message):
    content = bundle.program.read_bytes()
    check_program(rewritten(content, lambda part, content: content), 'network.pt2')
    with pytest.raises(EngineError, match=message):
        check_program(rewritten(content, change), 'network.pt2')


def test_other_files_are_no_programs(bundle):
    stream = io.BytesIO()
    torch.save({'weight': torch.zeros(2)}, stream)
    for content, message in ((b'', 'cannot be understood'), (b'\x80\x04K\x01.', 'understood'),
                             (stream.getvalue(), 'no part of one'),
                             (bundle.network.read_bytes(), 'cannot be understood')):
        with pytest.raises(EngineError, match=message):
            check_program(content, 'network.pt2')


# Passes on a GPU, without one

class FakeGraph:
    """A CUDA graph that runs its pass again."""

    capturing, most = 0, 0

    def replay(self):
        self.again()


@pytest.fixture
def passes(monkeypatch):
    """Return CudaPasses' module on tensors of the CPU, with graphs that only count."""
    cuda = pytest.importorskip('owseg_ros.engine.cuda')

    @contextmanager
    def graph(made, pool, stream, capture_error_mode):
        assert capture_error_mode == 'thread_local'
        FakeGraph.capturing += 1
        FakeGraph.most = max(FakeGraph.most, FakeGraph.capturing)
        time.sleep(0.02)
        yield
        FakeGraph.capturing -= 1

    stream = SimpleNamespace(synchronize=lambda: None)
    for name, value in {
            'Stream': lambda: stream, 'stream': lambda stream: nullcontext(), 'graph': graph,
            'graph_pool_handle': object, 'CUDAGraph': FakeGraph}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(FakeGraph, 'most', 0)
    return cuda


def doubling(cuda):
    """Return passes that double an image."""
    def prepare(size):
        image, output = torch.zeros(size, 3, 2, 2), torch.zeros(size, 3, 2, 2)

        def enqueue():
            torch.mul(image, 2, out=output)
            return {'masks': output}

        FakeGraph.again = staticmethod(enqueue)
        return cuda.Pass(image, enqueue)

    return cuda.CudaPasses(prepare)


def test_graphs_are_captured_one_at_a_time_in_a_process(passes):
    """By two engines that are built in threads of their own."""
    engines = [doubling(passes) for _ in range(3)]
    threads = [threading.Thread(target=engine.run, args=(torch.ones(1, 3, 2, 2),))
               for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert FakeGraph.most == 1 and FakeGraph.capturing == 0


def test_a_replayed_graph_sees_the_frame_of_this_call(passes):
    engine = doubling(passes)
    for value in (1.0, 3.0, 5.0):
        found = engine.run(torch.full((2, 3, 2, 2), value))
        assert torch.equal(found['masks'], torch.full((2, 3, 2, 2), 2 * value))


# On a GPU

@pytest.mark.gpu
@pytest.mark.parametrize('graph', [True, False])
@pytest.mark.parametrize('precision, tolerance', [('fp32', 1e-3), ('fp16', 0.05), ('bf16', 0.3)])
def test_values_on_the_gpu(bundle, frames, precision, tolerance, graph):
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    machine = StateMachine()
    engine = TorchEngine(
        bundle, TorchOptions(precision=precision, cuda_graph=graph), machine)
    onnx = OnnxEngine(bundle)
    for batch in (frames[:1], frames, frames[1:]):
        found, wanted = engine.infer(batch), onnx.infer(batch)
        assert difference(found.mask_logits, wanted.mask_logits) < tolerance
        there = engine.infer(batch, masks_on_device=True).mask_logits
        assert there.is_cuda
        np.testing.assert_array_equal(there.float().cpu().numpy(), found.mask_logits)
    assert machine.status.notes == ()


@pytest.mark.gpu
def test_masks_go_from_the_engine_to_the_readout_on_the_gpu(bundle, frames):
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    found = Segmenter(bundle, 'torch', torch=TorchOptions(precision='fp32'), readout='gpu')
    assert found.engine.wait(120).state == RUNNING
    wanted = Segmenter(bundle, readout='cpu')
    for frame in frames:
        np.testing.assert_allclose(
            found(frame).anomaly_score, wanted(frame).anomaly_score, atol=5e-3)
    assert found.readout.description.startswith('gpu') and found.readout.note == ''
    found.close()
