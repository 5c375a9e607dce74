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
import errno
import logging
import os
import threading

import numpy as np
from owseg_ros.language import cache as cache_module
from owseg_ros.language.cache import CachingTextEncoder
from owseg_ros.language.contract import TextEncoderError
import pytest
from support.counting_encoder import CountingEncoder
from support.tiny_bundle import flip_byte, truncate


def rows(encoder, texts) -> np.ndarray:
    """Return what the encoder itself gives, float32 [n, D]."""
    return np.array([encoder.vector(text) for text in texts])


def test_each_text_is_encoded_once():
    inner = CountingEncoder()
    encoder = CachingTextEncoder(inner)
    texts = ['dog', 'cat', 'dog']
    np.testing.assert_array_equal(encoder.encode(texts), rows(inner, texts))
    texts = ['horse', 'cat', 'dog']
    np.testing.assert_array_equal(encoder.encode(texts), rows(inner, texts))
    assert inner.asked == [['dog', 'cat'], ['horse']]
    assert encoder.encode([]).shape == (0, 8)
    assert (encoder.space, encoder.dim, encoder.key, encoder.templates) == (
        inner.space, inner.dim, inner.key, inner.templates)


def test_a_wording_in_all_its_prompts_is_one_entry(tmp_path):
    inner = CountingEncoder()
    groups = [('a dog', 'the dog'), ('a cat', 'the cat', 'some cat'), ('a dog',)]
    expected = np.array([rows(inner, group).mean(0) for group in groups])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    # As many entries as groups: with one for each prompt the first would be gone.
    for asked in (1, 0):
        encoder = CachingTextEncoder(inner, tmp_path, capacity=3)
        for _ in range(2):
            np.testing.assert_allclose(encoder.encode_means(groups), expected, atol=1e-6)
        assert encoder.passes == asked
    assert len(inner.asked) == 1 and CountingEncoder().encode_means([]).shape == (0, 8)
    # The group of one is the text.
    assert encoder.encode(['a dog']).shape == (1, 8) and len(inner.asked) == 1


def test_passes_are_counted_and_timed():
    encoder = CachingTextEncoder(CountingEncoder())
    assert (encoder.passes, encoder.pass_ms) == (0, 0.0)
    encoder.encode(['dog', 'cat'])
    assert encoder.passes == 1 and encoder.pass_ms > 0
    encoder.encode(['cat'])
    assert encoder.passes == 1
    encoder.encode(['cat', 'horse'])
    assert encoder.passes == 2


def test_the_next_run_encodes_nothing_again(tmp_path):
    texts = ['dog', 'Straße 狗', 'with\x00nul\x00', '']
    CachingTextEncoder(CountingEncoder(), tmp_path / 'cache').encode(texts)
    inner = CountingEncoder()
    encoder = CachingTextEncoder(inner, tmp_path / 'cache')
    np.testing.assert_array_equal(encoder.encode(texts), rows(inner, texts))
    assert inner.asked == []
    assert os.listdir(tmp_path / 'cache') == [encoder.path.name]


def test_another_encoder_has_its_own_file(tmp_path):
    CachingTextEncoder(CountingEncoder(), tmp_path).encode(['dog'])
    other = CountingEncoder(key='other')
    CachingTextEncoder(other, tmp_path).encode(['dog'])
    assert other.asked == [['dog']]
    assert len(os.listdir(tmp_path)) == 2
    # Even under the name of the other one's file.
    a, b = sorted(tmp_path.iterdir())
    a.replace(b)
    for key in ('counting', 'other'):
        inner = CountingEncoder(key=key)
        encoder = CachingTextEncoder(inner, tmp_path)
        encoder.encode(['dog'])
        assert inner.asked == [['dog']]


def test_the_texts_asked_for_last_are_kept(tmp_path):
    inner = CountingEncoder()
    encoder = CachingTextEncoder(inner, tmp_path, capacity=2)
    texts = ['a', 'b', 'c']
    np.testing.assert_array_equal(encoder.encode(texts), rows(inner, texts))
    encoder.encode(['b'])
    encoder.encode(['d'])
    encoder.encode(['b'])
    assert inner.asked == [['a', 'b', 'c'], ['d']]
    again = CountingEncoder()
    CachingTextEncoder(again, tmp_path, capacity=2).encode(['d', 'b', 'c'])
    assert again.asked == [['c']]


def test_a_file_of_a_larger_cache_is_read_in_part(tmp_path):
    CachingTextEncoder(CountingEncoder(), tmp_path, capacity=3).encode(['a', 'b', 'c'])
    inner = CountingEncoder()
    CachingTextEncoder(inner, tmp_path, capacity=2).encode(['b', 'c', 'a'])
    assert inner.asked == [['a']]


@pytest.mark.parametrize('damage', [
    lambda path: truncate(path, 100), lambda path: truncate(path, 0),
    lambda path: flip_byte(path, path.stat().st_size // 2),
    lambda path: path.write_bytes(b'no archive'),
    lambda path: np.savez(path, header=np.frombuffer(b'{"key": "counting", "texts": ["dog"]}',
                                                     np.uint8), embeddings=np.zeros((1, 8))),
    lambda path: np.savez(path, header=np.frombuffer(b'{"key": "counting", "texts": ["dog"]}',
                                                     np.uint8),
                          embeddings=np.full((1, 8), np.nan, np.float32)),
    lambda path: np.savez(path, header=np.frombuffer(b'[1]', np.uint8)),
    lambda path: np.savez(path, embeddings=np.zeros(3)),
    lambda path: np.savez(path, header=np.array([{'a': 1}], object),
                          embeddings=np.zeros((1, 8), np.float32)),
    lambda path: (path.unlink(), path.mkdir())])
def test_a_damaged_file_is_a_warning_and_texts_are_encoded_again(damage, tmp_path, caplog):
    first = CachingTextEncoder(CountingEncoder(), tmp_path)
    first.encode(['dog', 'cat'])
    damage(first.path)
    inner = CountingEncoder()
    with caplog.at_level(logging.WARNING):
        encoder = CachingTextEncoder(inner, tmp_path)
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert str(first.path) in caplog.text
    np.testing.assert_array_equal(encoder.encode(['dog']), rows(inner, ['dog']))
    assert inner.asked == [['dog']]


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    first = CachingTextEncoder(CountingEncoder(), tmp_path)
    first.encode(['dog'])
    data = first.path.read_bytes()
    expected = rows(CountingEncoder(), ['dog'])
    for offset in range(0, len(data), 7):
        first.path.write_bytes(data)
        flip_byte(first.path, offset, 0x10)
        inner = CountingEncoder()
        np.testing.assert_array_equal(CachingTextEncoder(inner, tmp_path).encode(['dog']),
                                      expected)


def test_a_full_disk_is_one_warning(tmp_path, caplog, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, 'No space left on device')

    inner = CountingEncoder()
    encoder = CachingTextEncoder(inner, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, 'write_atomically', full)
        encoder.encode(['dog'])
        encoder.encode(['cat'])
    assert len(caplog.records) == 1 and 'No space left' in caplog.text
    encoder.encode(['cat', 'dog'])
    assert inner.asked == [['dog'], ['cat']]
    # Once there is space again, everything is kept.
    encoder.encode(['horse'])
    again = CountingEncoder()
    CachingTextEncoder(again, tmp_path).encode(['dog', 'cat', 'horse'])
    assert again.asked == []


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    (tmp_path / 'file').write_text('')
    encoder = CachingTextEncoder(CountingEncoder(), tmp_path / 'file' / 'cache')
    assert encoder.encode(['dog']).shape == (1, 8)
    assert 'cannot be kept' in caplog.text


def test_what_fails_is_not_kept(tmp_path):
    inner = CountingEncoder()
    encoder = CachingTextEncoder(inner, tmp_path)
    inner.broken = True
    with pytest.raises(TextEncoderError):
        encoder.encode(['dog'])
    inner.broken = False
    np.testing.assert_array_equal(encoder.encode(['dog']), rows(inner, ['dog']))


def test_threads_share_the_work():
    inner = CountingEncoder()
    inner.gate.clear()
    encoder = CachingTextEncoder(inner)
    texts = [f'thing {index}' for index in range(20)]
    results = []
    threads = [threading.Thread(target=lambda: results.append(encoder.encode(texts)))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    inner.release_second()
    for thread in threads:
        thread.join(30)
    assert len(results) == 8 and inner.asked == [texts]
    for result in results:
        np.testing.assert_array_equal(result, rows(inner, texts))


def test_capacity_is_at_least_one():
    with pytest.raises(ValueError, match='capacity'):
        CachingTextEncoder(CountingEncoder(), capacity=0)
