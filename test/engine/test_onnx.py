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
"""The ONNX engine on a real small network: values, batches, and how it refuses."""

from dataclasses import replace

import numpy as np
import onnx
from owseg_ros.bundle import ClassInfo, load_bundle
from owseg_ros.engine import create_engine, EngineError, OnnxEngine
from owseg_ros.engine.network import is_finite
from owseg_ros.engine.onnx import available_providers, physical_cores
from owseg_ros.engine.preprocess import pack
from owseg_ros.frame import Frame
from owseg_ros.readout import reference
import pytest
from support.counting_encoder import CountingEncoder
from support.tiny_bundle import edit_manifest, LOGIT, make_tiny_bundle, paint, tiny_network


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp('bundle') / 'tiny',
                            encoder=CountingEncoder(6))


@pytest.fixture(scope='module')
def engine(bundle):
    return OnnxEngine(bundle, threads=1)


def rewritten(folder, change=None, manifest=None, **options):
    """Make a tiny bundle, change its network and manifest, and load it with good checksums."""
    bundle = make_tiny_bundle(folder, **options)
    if change is not None:
        model = onnx.load_from_string(bundle.network.read_bytes())
        change(model)
        bundle.network.write_bytes(model.SerializeToString())
    edit_manifest(folder, manifest or (lambda values: None), reseal=True)
    return load_bundle(folder)


def fix_batch(size):
    """Return a change that fixes the batch size of a network."""
    def change(model):
        for entry in [*model.graph.input, *model.graph.output]:
            entry.type.tensor_type.shape.dim[0].dim_value = size
    return change


def test_values(engine):
    """Red on the left: query 0 there, and nothing that the grey half belongs to."""
    output = engine.infer([Frame(paint(96, 64))])
    assert output.mask_logits.shape == (1, 8, 16, 24)
    assert output.mask_logits.dtype == np.float32
    np.testing.assert_allclose(output.mask_logits[0, 0, :, :12], LOGIT, atol=0.1)
    assert (output.mask_logits[0, :3, :, 12:] < -LOGIT + 0.5).all()
    assert output.class_probabilities.shape == (1, 8, 3)
    np.testing.assert_allclose(
        output.class_probabilities[0, :3], np.eye(3), atol=1e-4)
    assert output.class_probabilities[0, 3:].max() < 1e-4
    assert output.region_embeddings.shape == (1, 8, 6)
    assert output.pixel_features is None and output.text_features is None
    assert output.preprocess_ms > 0 and output.network_ms > 0


def test_class_probabilities_are_the_softmax_without_no_object(engine):
    logits = np.zeros((4,))
    logits[0] = LOGIT
    output = engine.infer([Frame(paint(96, 64))])
    np.testing.assert_allclose(
        output.class_probabilities[0, 0], reference.class_probabilities(logits[None])[0],
        atol=1e-6)


def test_pixel_features_on_demand(engine, tmp_path):
    output = engine.infer([Frame(paint(96, 64))], pixel_features=True)
    assert output.pixel_features.shape == (1, 4, 16, 24)
    np.testing.assert_allclose(output.pixel_features[0, :, 8, 2], [1, 0, 0, 1 / 3], atol=0.01)
    plain = rewritten(tmp_path / 'b', manifest=lambda values: values['network']['outputs'].update(
        pixel_features=None))
    with pytest.raises(EngineError, match='no pixel features'):
        OnnxEngine(plain, threads=1).infer([Frame(paint(96, 64))], pixel_features=True)


def test_embeddings_and_text_features(engine, bundle, tmp_path):
    """Both live in the text space; what is not asked for is not there."""
    frames = [Frame(paint(96, 64, color, (255, 255, 255))) for color in ((255, 0, 0), (0, 0, 255))]
    output = engine.infer(frames, text_features=True)
    encoder = CountingEncoder(6)
    for index, word in enumerate(('red', 'blue')):
        np.testing.assert_allclose(
            output.region_embeddings[index, 2 * index], encoder.vector(word), atol=0.02)
        np.testing.assert_allclose(
            output.text_features[index, :, 4, 2], encoder.vector(word), atol=0.02)
        np.testing.assert_allclose(
            output.text_features[index, :, 4, 9], encoder.vector('white'), atol=0.02)
    assert output.text_features.shape == (2, 6, 8, 12)
    assert output.frozen_region_embeddings is None
    assert engine.infer(frames, region_embeddings=False).region_embeddings is None
    mute = OnnxEngine(make_tiny_bundle(tmp_path / 'mute'), threads=1)
    assert mute.infer(frames).region_embeddings is None
    with pytest.raises(EngineError, match='no text features.*text_features'):
        mute.infer(frames, text_features=True)


def test_frozen_embeddings(tmp_path):
    def add(model):
        model.graph.node.append(onnx.helper.make_node('Neg', ['region_embeddings'], ['frozen']))
        model.graph.output.append(onnx.helper.make_tensor_value_info(
            'frozen', onnx.TensorProto.FLOAT, ['batch', 8, 6]))

    bundle = rewritten(
        tmp_path / 'b', add, encoder=CountingEncoder(6),
        manifest=lambda values: values['network']['outputs'].update(
            frozen_region_embeddings='frozen'))
    output = OnnxEngine(bundle, threads=1).infer([Frame(paint(96, 64))])
    np.testing.assert_array_equal(output.frozen_region_embeddings, -output.region_embeddings)


def test_probability_of_no_object(engine):
    output = engine.infer([Frame(paint(96, 64))] * 2)
    np.testing.assert_allclose(output.no_object_probabilities, [[0] * 3 + [1] * 5] * 2, atol=1e-4)
    np.testing.assert_allclose(
        output.no_object_probabilities + output.class_probabilities.sum(axis=-1), 1, atol=1e-6)


def test_embeddings_of_another_length_are_refused(tmp_path):
    def change(values):
        values['language']['dim'] = 7

    bundle = rewritten(tmp_path / 'b', manifest=change, encoder=CountingEncoder(6))
    with pytest.raises(EngineError, match=r'language\.dim is 7 .*8, 6'):
        OnnxEngine(bundle)


def test_length_of_embeddings_is_checked_again_while_running(bundle):
    """A network whose shapes are dynamic shows it only when it runs."""
    engine = OnnxEngine(bundle, threads=1)
    engine.bundle = replace(bundle, language=replace(bundle.language, dim=7))
    with pytest.raises(EngineError, match=r'region_embeddings must be \[1, 8, 7\] and is'):
        engine.infer([Frame(paint(96, 64))])
    with pytest.raises(EngineError, match=r'must be \[1, 7, 8, 12\] and is \[1, 6, 8, 12\]'):
        engine.infer([Frame(paint(96, 64))], region_embeddings=False, text_features=True)


def test_batch_equals_single(engine):
    frames = [Frame(paint(96, 64)), Frame(paint(200, 100, (0, 255, 0))),
              Frame(paint(40, 40, (0, 0, 255), (255, 255, 0)), 'bgr')]
    together = engine.infer(frames)
    for index, frame in enumerate(frames):
        alone = engine.infer([frame])
        np.testing.assert_allclose(
            together.mask_logits[index], alone.mask_logits[0], atol=1e-4)
        np.testing.assert_allclose(
            together.class_probabilities[index], alone.class_probabilities[0], atol=1e-6)
        np.testing.assert_array_equal(
            together.region_embeddings[index], alone.region_embeddings[0])


@pytest.mark.parametrize('size', [1, 2])
def test_fixed_batch_runs_in_chunks(tmp_path, engine, size):
    fixed = OnnxEngine(rewritten(tmp_path / 'b', fix_batch(size)), threads=1)
    frames = [Frame(paint(96, 64, color)) for color in np.eye(3, dtype=np.uint8) * 255]
    for count in (1, 3):
        found = fixed.infer(frames[:count], pixel_features=True)
        prepared = pack(frames[:count], fixed.input)
        masks, logits = fixed.run_batch(prepared, ('mask_logits', 'class_logits'))
        np.testing.assert_array_equal(masks, found.mask_logits)
        assert logits.shape == (count, *logits.shape[1:])
        expected = engine.infer(frames[:count], pixel_features=True)
        np.testing.assert_allclose(found.mask_logits, expected.mask_logits, atol=1e-4)
        np.testing.assert_allclose(found.pixel_features, expected.pixel_features, atol=1e-5)
        assert found.class_probabilities.shape == (count, 8, 3)


def test_results_belong_to_the_caller(engine):
    first = engine.infer([Frame(paint(96, 64))])
    kept = first.mask_logits.copy()
    engine.infer([Frame(paint(96, 64, (0, 255, 0)))])
    np.testing.assert_array_equal(first.mask_logits, kept)


def test_threads_and_description(bundle):
    assert OnnxEngine(bundle, threads=1).description == 'onnx (CPUExecutionProvider, 1 thread)'
    assert OnnxEngine(bundle, threads=2).description == 'onnx (CPUExecutionProvider, 2 threads)'
    automatic = OnnxEngine(bundle)
    assert automatic.threads == physical_cores() >= 1
    frame = Frame(paint(96, 64))
    np.testing.assert_allclose(
        automatic.infer([frame]).mask_logits,
        OnnxEngine(bundle, threads=1).infer([frame]).mask_logits, atol=1e-4)
    with pytest.raises(EngineError, match='threads'):
        OnnxEngine(bundle, threads=-2)


def test_warm_up_times_a_pass(engine):
    assert 0 < engine.warm_up() < 10000


def test_registry(bundle):
    made = create_engine(bundle, 'onnx', ('cpu',), 1)
    assert made.name == 'onnx' and made.input == bundle.input
    with pytest.raises(EngineError, match="unknown engine 'tensorflow'.*onnx"):
        create_engine(bundle, 'tensorflow')


def test_unknown_provider(bundle):
    with pytest.raises(EngineError, match="unknown provider 'gpu'.*cpu, cuda, tensorrt"):
        OnnxEngine(bundle, providers=('gpu',))
    for nothing in ((), 'cpu'):
        with pytest.raises(EngineError, match='must be a list'):
            OnnxEngine(bundle, providers=nothing)


@pytest.mark.parametrize('name', ['cuda', 'tensorrt'])
def test_provider_that_is_not_installed(bundle, name):
    if name in available_providers():
        pytest.skip(f'this onnxruntime has the provider {name}')
    with pytest.raises(EngineError, match=f"'{name}'.*is not available.*has cpu.*install"):
        OnnxEngine(bundle, providers=(name, 'cpu'))


def test_no_frames(engine):
    with pytest.raises(EngineError, match='at least one frame'):
        engine.infer([])


@pytest.mark.parametrize('content', [b'', b'junk', bytes(500), tiny_network()[:700]])
def test_corrupt_network(tmp_path, content):
    """A file that is no network is refused even where nobody compared its checksum."""
    bundle = make_tiny_bundle(tmp_path / 'b')
    bundle.network.write_bytes(content)
    with pytest.raises(EngineError, match=r'network\.onnx.*cannot load.*export'):
        OnnxEngine(bundle)


def test_network_that_vanished(tmp_path):
    bundle = make_tiny_bundle(tmp_path / 'b')
    bundle.network.unlink()
    with pytest.raises(EngineError, match='cannot load'):
        OnnxEngine(bundle)


def _rename_output(values):
    values['network']['outputs']['mask_logits'] = 'masks'


def _other_size(values):
    values['network']['input'].update(width=128, height=96)


def _rename_input(values):
    values['network']['input']['name'] = 'frame'


def _one_class_more(values):
    values['classes'].append({'id': 3, 'name': 'yellow', 'color': [255, 255, 0]})


def _swapped_outputs(values):
    values['network']['outputs'].update(mask_logits='class_logits', class_logits='mask_logits')


@pytest.mark.parametrize('change, text', [
    (_rename_output, "output 'masks' for mask_logits.*class_logits"),
    (_other_size, r'\[batch, 3, 96, 128\].*64, 96'),
    (_rename_input, "one input 'frame'.*image"),
    (_one_class_more, '4 classes need 5 columns'),
    (_swapped_outputs, 'mask_logits must be float32 with 4 dimensions'),
])
def test_manifest_that_does_not_belong_to_the_network(tmp_path, change, text):
    bundle = rewritten(tmp_path / 'b', manifest=change)
    with pytest.raises(EngineError, match=f'{text}.*export the bundle again'):
        OnnxEngine(bundle)


def test_class_count_is_checked_again_while_running(bundle):
    """A network whose shapes are dynamic shows its number of classes only when it runs."""
    engine = OnnxEngine(bundle, threads=1)
    engine.bundle = replace(bundle, classes=(*bundle.classes, ClassInfo(3, 'pink', (9, 9, 9))))
    with pytest.raises(EngineError, match=r'1 frames and 4 classes.*\(1, 8, 4\)'):
        engine.infer([Frame(paint(96, 64))])


def test_the_column_of_an_outlier_class_is_kept_apart(bundle):
    """A bundle may say that the last column before no-object is not a class but outliers."""
    whole = OnnxEngine(bundle, threads=1).infer([Frame(paint(96, 64))])
    last = whole.class_probabilities.shape[2] - 1
    split = OnnxEngine(replace(bundle, classes=bundle.classes[:-1], outlier_class=True),
                       threads=1).infer([Frame(paint(96, 64))])
    np.testing.assert_array_equal(split.class_probabilities,
                                  whole.class_probabilities[..., :last])
    np.testing.assert_array_equal(split.outlier_probabilities,
                                  whole.class_probabilities[..., last])
    assert whole.outlier_probabilities is None


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('name, key', [
    ('class_table', 'class_logits'), ('masks_bias', 'mask_logits')])
def test_values_that_are_not_finite(tmp_path, value, name, key):
    def spoil(model):
        for entry in model.graph.initializer:
            if entry.name == name:
                array = onnx.numpy_helper.to_array(entry).copy()
                array.flat[0] = value
                entry.CopyFrom(onnx.numpy_helper.from_array(array, name))
    engine = OnnxEngine(rewritten(tmp_path / 'b', spoil))
    with pytest.raises(EngineError) as caught:
        engine.infer([Frame(paint(96, 64))])
    assert str(caught.value) == (
        f'{engine.bundle.name}: the network produced non-finite values in {key} on '
        f'{engine.description}; rebuild the engine and check its precision (FP16 overflows where '
        "FP32 does not), or use the engine onnx with providers ['cpu']")


@pytest.mark.filterwarnings('error')
def test_what_is_finite():
    """One value among many is seen wherever it is; the sum of large ones may overflow."""
    values = np.random.default_rng(0).normal(size=(2, 5, 88, 120)).astype(np.float32)
    assert is_finite(values) and is_finite(values[:1]) and is_finite(values[:0])
    largest = np.finfo(np.float32).max
    for place in (0, 12345, values.size - 1):
        for value, finite in ((np.nan, False), (np.inf, False), (-np.inf, False),
                              (largest, True), (-largest, True), (1e30, True), (1e-45, True)):
            changed = values.copy()
            changed.flat[place] = value
            assert is_finite(changed) == finite
    opposite = values.copy()
    opposite.flat[7], opposite.flat[-7] = np.inf, -np.inf
    assert not is_finite(opposite)
    for full, finite in ((largest, True), (-largest, True), (np.inf, False), (np.nan, False)):
        assert is_finite(np.full((3, 999), full, np.float32)) == finite
    # Overflow must not hide what is not finite.
    both = np.full((3, 999), largest, np.float32)
    both[1, 1] = np.nan
    assert not is_finite(both)
    assert is_finite(values.transpose(0, 2, 3, 1)) and is_finite(np.full(9, 6e4, np.float16))


def test_what_is_finite_on_a_device():
    torch = pytest.importorskip('torch')
    values = torch.zeros(3, 5)
    assert is_finite(values)
    for value in (np.nan, np.inf, -np.inf):
        values[1, 2] = value
        assert not is_finite(values)


def test_failure_while_running(engine):
    """What ONNX Runtime raises while it runs comes out as an EngineError with advice."""
    wrong = OnnxEngine(engine.bundle, threads=1)
    wrong.input = replace(wrong.input, name='somewhere')
    with pytest.raises(EngineError, match='the network failed on onnx'):
        wrong.infer([Frame(paint(96, 64))])
