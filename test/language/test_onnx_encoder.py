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
import threading

import numpy as np
import onnx
from owseg_ros.bundle import sha256_of
from owseg_ros.language import CachingTextEncoder, NO_EXPANSION, QueryBook, TextEncoderError
from owseg_ros.language.encoder_folder import load_text_encoder_folder, write_text_encoder_folder
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
import pytest
from support.tiny_bundle import edit_manifest, flip_byte, truncate
from support.tiny_text_encoder import (
    DIM, make_tiny_text_encoder, MAX_TOKENS, SPACE, tiny_text_manifest, tiny_text_network,
    tiny_tokenizer)

TEXTS = ['dog', 'god', 'a traffic cone', '', 'd og', 'Straße', '狗', '👩\u200d🔬', 'x' * 300]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return the folder of a tiny text encoder; not to be changed."""
    return make_tiny_text_encoder(tmp_path_factory.mktemp('text') / 'encoder').path


@pytest.fixture(scope='module')
def encoder(folder):
    """Return the tiny text encoder."""
    return OnnxTextEncoder(folder, threads=1)


@pytest.fixture
def copy(tmp_path):
    """Return the folder of a tiny text encoder to damage."""
    return make_tiny_text_encoder(tmp_path / 'encoder').path


def test_texts_become_vectors_of_unit_length(encoder):
    assert (encoder.space, encoder.dim, encoder.templates) == (SPACE, DIM, 'plain')
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), DIM) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    assert distances[~np.eye(len(TEXTS), dtype=bool)].min() > 0.01
    assert encoder.encode([]).shape == (0, DIM)


def test_blanks_around_a_text_are_no_part_of_it(encoder):
    np.testing.assert_array_equal(
        encoder.encode([' ', '\u3000d og\n']), encoder.encode(['', 'd og']))


def test_padding_and_batches_change_nothing(encoder):
    texts = [text + str(index) for index in range(12) for text in TEXTS]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-6)


def test_tokens(encoder):
    ids, mask = encoder.tokens(['ab', '', 'x' * 300])
    assert ids.dtype == mask.dtype == np.int64 and ids.shape == mask.shape == (3, MAX_TOKENS)
    np.testing.assert_array_equal(mask.sum(axis=1), [4, 2, MAX_TOKENS])
    np.testing.assert_array_equal(ids[0][mask[0] == 0], 0)
    # Cut texts keep their end.
    assert ids[0, 0] == ids[1, 0] == ids[2, 0] == 1 and ids[0, 3] == ids[1, 1] == ids[2, -1] == 2


def test_a_network_without_a_mask(tmp_path):
    write_text_encoder_folder(tmp_path, tiny_text_manifest(), tiny_text_network(mask=False),
                              tiny_tokenizer())
    assert OnnxTextEncoder(tmp_path).encode(['dog']).shape == (1, DIM)


def test_a_network_keeps_its_weights_in_files_that_are_listed(tmp_path):
    model = onnx.load_from_string(tiny_text_network())
    weights = onnx.TensorProto(name='spare', data_type=onnx.TensorProto.FLOAT, dims=[2],
                               data_location=onnx.TensorProto.EXTERNAL)
    weights.external_data.add(key='location', value='other.bin')
    model.graph.initializer.append(weights)
    with pytest.raises(TextEncoderError, match="'other.bin', which is not listed"):
        write_text_encoder_folder(tmp_path, tiny_text_manifest(), model.SerializeToString(),
                                  tiny_tokenizer())


def test_one_text_is_not_a_list(encoder):
    with pytest.raises(TypeError, match='list of texts'):
        encoder.encode('dog')


@pytest.mark.parametrize('text', ['\ud800', None, 3])
def test_what_is_no_text_is_one_clear_error(text, encoder):
    with pytest.raises(TextEncoderError, match='cannot be tokenized'):
        encoder.encode(['dog', text])


def test_the_files_decide_the_key(folder, encoder, tmp_path):
    same = OnnxTextEncoder(make_tiny_text_encoder(tmp_path / 'same', name='renamed').path)
    other = OnnxTextEncoder(make_tiny_text_encoder(tmp_path / 'other', seed=1).path)
    assert same.key == encoder.key != other.key
    assert not np.allclose(other.encode(['dog']), encoder.encode(['dog']))


def test_threads_may_encode_at_once(encoder):
    expected = encoder.encode(TEXTS)
    results = []
    threads = [threading.Thread(target=lambda: results.append(encoder.encode(TEXTS)))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 8
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_message_becomes_vectors(encoder, tmp_path):
    book = QueryBook(CachingTextEncoder(encoder, tmp_path), NO_EXPANSION)
    active = book.ask('traffic cone, 狗').active
    assert active.space == SPACE and active.embeddings.shape == (2, DIM)
    np.testing.assert_allclose(active.embeddings, encoder.encode(['traffic cone', '狗']),
                               atol=1e-6)


def test_a_folder_is_written_as_it_is_read(folder):
    read = load_text_encoder_folder(folder)
    expected = tiny_text_manifest()
    assert {key: getattr(read, key) for key in expected} == expected
    assert read.files == {'text.onnx': sha256_of(folder / 'text.onnx'),
                          'tokenizer.json': sha256_of(folder / 'tokenizer.json')}
    assert sorted(path.name for path in folder.iterdir()) == [
        'manifest.yaml', 'text.onnx', 'tokenizer.json']
    assert load_text_encoder_folder(str(folder)) == read


def test_a_folder_can_be_replaced(copy):
    before = OnnxTextEncoder(copy).key
    make_tiny_text_encoder(copy, seed=1, name='second')
    after = OnnxTextEncoder(copy)
    assert after.key != before and after.folder.name == 'second'
    with pytest.raises(TextEncoderError, match='dim'):
        make_tiny_text_encoder(copy, seed=2, dim=0)
    assert OnnxTextEncoder(copy).key == after.key


@pytest.mark.parametrize('damage, says', [
    (lambda f: flip_byte(f / 'text.onnx', 1000), 'text.onnx has sha256'),
    (lambda f: truncate(f / 'text.onnx', 500), 'text.onnx has sha256'),
    (lambda f: flip_byte(f / 'tokenizer.json', 100), 'tokenizer.json has sha256'),
    (lambda f: (f / 'text.onnx').unlink(), 'text.onnx cannot be read'),
    (lambda f: (f / 'manifest.yaml').unlink(), 'manifest.yaml cannot be read'),
    (lambda f: truncate(f / 'manifest.yaml', 0), 'expected manifest.yaml of'),
    (lambda f: (f / 'manifest.yaml').write_text('{'), 'not plain YAML'),
    (lambda f: (f / 'manifest.yaml').write_text('!!timestamp 2020-99-99'), 'not plain YAML'),
    (lambda f: (f / 'manifest.yaml').write_text('!!python/name:os.system'), 'not plain YAML'),
    (lambda f: (f / 'manifest.yaml').write_text('#' * 70000), 'larger than'),
    (lambda f: edit_manifest(f, lambda m: m.pop('space')), 'missing key space'),
    (lambda f: edit_manifest(f, lambda m: m.update(spaces='a')), "unknown key 'spaces'"),
    (lambda f: edit_manifest(f, lambda m: m.update(schema_version=2)), 'schema_version'),
    (lambda f: edit_manifest(f, lambda m: m.update(schema='owseg_ros/bundle')), 'schema'),
    (lambda f: edit_manifest(f, lambda m: m.update(pooling='magic')), 'pooling'),
    (lambda f: edit_manifest(f, lambda m: m['files'].pop('text.onnx')), 'missing key text.onnx'),
    (lambda f: edit_manifest(f, lambda m: m['files'].update({'../x': '0' * 64})), 'unknown key'),
    (lambda f: edit_manifest(f, lambda m: m['files'].update({'text.onnx': 'A'})), 'hex digits'),
    (lambda f: edit_manifest(f, lambda m: m.update(dim=DIM + 1)), 'expected float32 [2, 17]'),
    (lambda f: edit_manifest(f, lambda m: m.update(max_tokens=99)), 'at the 99 tokens'),
    (lambda f: ((f / 'text.onnx').write_bytes(b'no network'),
                edit_manifest(f, lambda m: None, reseal=True)), 'cannot load text.onnx'),
    (lambda f: ((f / 'tokenizer.json').write_text('{"version": "1.0"}'),
                edit_manifest(f, lambda m: None, reseal=True)), 'cannot load tokenizer.json'),
    (lambda f: ((f / 'text.onnx').write_bytes(tiny_text_network(unit=False)),
                edit_manifest(f, lambda m: None, reseal=True)), 'not of unit length'),
    (lambda f: ((f / 'text.onnx').write_bytes(tiny_text_network().replace(
        b'input_ids', b'input_idx')), edit_manifest(f, lambda m: None, reseal=True)),
     "has the inputs ['attention_mask', 'input_idx']")])
def test_damage_is_one_clear_error(damage, says, copy):
    damage(copy)
    with pytest.raises(TextEncoderError) as error:
        OnnxTextEncoder(copy)
    assert says in str(error.value) and str(copy) in str(error.value)
    assert '\n' not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(TextEncoderError, match='manifest.yaml cannot be read'):
        OnnxTextEncoder(tmp_path / 'missing')
    (tmp_path / 'file').write_text('')
    with pytest.raises(TextEncoderError, match='cannot be written'):
        make_tiny_text_encoder(tmp_path / 'file')


def test_unknown_providers_are_named(folder):
    with pytest.raises(TextEncoderError, match='npu'):
        OnnxTextEncoder(folder, providers=['npu'])
