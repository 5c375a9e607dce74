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
from pathlib import Path

import numpy as np
from owseg_ros.language.contract import TextEncoderError
from owseg_ros.language.installed import (
    advice, default_text_encoder_path, open_text_encoder, text_embedding_cache)
import pytest
from support.tiny_text_encoder import make_tiny_text_encoder


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.delenv('OWSEG_TEXT_ENCODER', raising=False)
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'data'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def test_where_it_is_looked_for(tmp_path, monkeypatch):
    below = tmp_path / 'data' / 'owseg_ros' / 'text_encoders'
    assert default_text_encoder_path() == below / 'all-MiniLM-L6-v2'
    assert default_text_encoder_path('open_clip/RN50/0123') == below / '0123'
    monkeypatch.setenv('OWSEG_TEXT_ENCODER', '~/mine')
    assert default_text_encoder_path() == Path.home() / 'mine'
    monkeypatch.setenv('OWSEG_TEXT_ENCODER', '')
    monkeypatch.setenv('XDG_DATA_HOME', '')
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert default_text_encoder_path() == (
        tmp_path / '.local/share/owseg_ros/text_encoders/all-MiniLM-L6-v2')
    assert text_embedding_cache() == tmp_path / '.cache/owseg_ros/text_embeddings'


def test_the_one_at_the_default_place_is_opened_and_remembers(tmp_path):
    make_tiny_text_encoder(default_text_encoder_path())
    encoder = open_text_encoder()
    row = encoder.encode(['cone'])
    assert encoder.space == 'tiny' and row.shape == (1, 16)
    assert encoder.path.parent == text_embedding_cache() and encoder.path.is_file()
    make_tiny_text_encoder(tmp_path / 'other', seed=1)
    other = open_text_encoder(tmp_path / 'other', cache=False)
    assert other.path is None and np.abs(other.encode(['cone']) - row).max() > 0.1


def test_one_that_is_missing_says_what_to_run(tmp_path):
    with pytest.raises(TextEncoderError, match='run: owseg text-encoder$'):
        open_text_encoder()
    with pytest.raises(TextEncoderError, match=f'run: owseg text-encoder --out {tmp_path}/x$'):
        open_text_encoder(str(tmp_path / 'x'))
    assert advice(default_text_encoder_path()) == 'run: owseg text-encoder'
