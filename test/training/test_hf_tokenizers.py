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
import json

import numpy as np
from owseg_ros.language.contract import TextEncoderError
from owseg_ros.language.encoder_folder import load_text_encoder_folder, WEIGHTS
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_training import cli, text_encoder
from owseg_training.clip_text import clip_text_tower
from owseg_training.hf_tokenizer import exported_tokenizer, local_tokenizer
from owseg_training.open_clip_models import import_open_clip, OpenClipError, text_configuration
from owseg_training.text_encoder import check_texts, export_text_encoder, TOLERANCE
import pytest
from support.hf_folders import add_small_model, kind_of, SPECIAL, write_hf_folder
import tokenizers
import torch

# One for each pair of tokenizer and cleaning that open_clip's models have.
NAMES = ('ViT-L-14-CLIPA', 'roberta-ViT-B-32', 'mt5-base-ViT-B-32', 'ViT-L-14-worldwide',
         'ViT-B-16-SigLIP', 'ViT-B-16-SigLIP2', 'ViT-H-14-worldwide', 'nllb-clip-base')
# Towers that differ in what they are made of or how they pool.
TOWERS = (('ViT-L-14-CLIPA', 'last_token'), ('ViT-H-14-worldwide', 'end_of_text'),
          ('ViT-SO400M-16-SigLIP-i18n-256', 'last_token'), ('coca_roberta-ViT-B-32', 'mean'),
          ('mt5-base-ViT-B-32', 'mean'), ('nllb-clip-base', 'first_token'))
TEXTS = [*check_texts({'templates': 'caption'}), 'Mixed CASE', ' two  blanks ', '‘It’s “A”’',
         'a_b', 'road_sign', 'a road_sign and a <table> here', 'a\nb', '?! dog', 'dog ?!',
         '<eos> dog', 'x <extra_id_0> y', 'eng_latn', 'a  <mask>  b']


@pytest.fixture(scope='module')
def open_clip():
    """Return the module."""
    pytest.importorskip('transformers', reason='transformers is not installed')
    try:
        return import_open_clip()
    except OpenClipError as error:
        pytest.skip(str(error))


@pytest.fixture(scope='module')
def hub(open_clip, tmp_path_factory):
    """Return what finds the folder of a model: of its kind of tokenizer, made once."""
    root, texts = tmp_path_factory.mktemp('hub'), check_texts({'templates': 'caption'})

    def folder(name):
        kind = kind_of(text_configuration(name)['hf_tokenizer_name'])
        return root / kind if (root / kind).exists() else write_hf_folder(root / kind, kind, texts)

    return folder


@pytest.fixture(scope='module')
def small(open_clip, tmp_path_factory):
    """Return what gives the name of a small model and a checkpoint of it, by the real name."""
    folder = tmp_path_factory.mktemp('small')

    def make(name, hf_folder):
        model, weights = add_small_model(open_clip, name, folder), folder / f'{name}.pt'
        torch.manual_seed(0)
        torch.save(original(open_clip, model, hf_folder).state_dict(), weights)
        return model, weights

    return make


def original(open_clip, model, hf_folder, weights=None):
    """Return a model as open_clip makes it of a local folder."""
    text = open_clip.get_model_config(model)['text_cfg']
    if 'hf_model_name' in text:
        text |= {'hf_model_name': str(hf_folder), 'hf_model_pretrained': False}
    return open_clip.create_model(model, pretrained=weights and str(weights), text_cfg=text).eval()


def tokenizer_of(open_clip, name, folder):
    """Return the tokenizer that open_clip makes of a local folder for a model."""
    text = open_clip.get_model_config(name)['text_cfg']
    return open_clip.tokenizer.HFTokenizer(
        str(folder), context_length=text.get('context_length', 77),
        **text.get('tokenizer_kwargs', {}))


def exported(name, folder):
    """Return the tokenizer of a model as the robot reads it."""
    return tokenizers.Tokenizer.from_str(
        exported_tokenizer(local_tokenizer(name, text_configuration(name), folder)))


def test_each_model_is_of_a_kind_that_is_tried(open_clip):
    found = {}
    for name in open_clip.list_models():
        text = open_clip.get_model_config(name)['text_cfg']
        if text.get('hf_tokenizer_name'):
            cleaning = str(text.get('tokenizer_kwargs'))
            found.setdefault((kind_of(text['hf_tokenizer_name']), cleaning), []).append(name)
    assert {kind for kind, _ in found} == set(SPECIAL)
    assert all(set(names) & set(NAMES) for names in found.values()), found


@pytest.mark.parametrize('name', NAMES)
def test_tokens_are_those_of_open_clip(open_clip, hub, name):
    expected = tokenizer_of(open_clip, name, hub(name))(TEXTS).tolist()
    tokenizer = exported(name, hub(name))
    other = [text for text, tokens in zip(TEXTS, expected)
             if tokenizer.encode(text.strip()).ids != tokens]
    assert other == []
    assert len({tuple(tokens) for tokens in expected}) > 300


def test_texts_end_alike_however_long(open_clip, hub):
    for name, length, last, padding in (
            ('ViT-L-14-CLIPA', 32, 0, 0), ('ViT-B-16-SigLIP', 64, 1, 1),
            ('ViT-B-16-SigLIP2', 64, 1, 0), ('ViT-H-14-worldwide', 77, 2, 1)):
        tokenizer = exported(name, hub(name))
        long, short = (tokenizer.encode(text).ids for text in ('stone ' * 200, 'stone'))
        assert len(long) == len(short) == length, name
        assert (long[-1], short[-1]) == (last, padding), name
        assert long[-2] not in (last, padding), name


def test_scores_are_read_as_they_were(open_clip, hub):
    random = np.random.default_rng(0)
    original = local_tokenizer('mt5-base-ViT-B-32', text_configuration('mt5-base-ViT-B-32'),
                               hub('mt5-base-ViT-B-32'))
    scores = [*(-random.exponential(9, 2000)), *np.float32(random.normal(size=2000))]
    words = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), *(
        (f'"{index}', float(score)) for index, score in enumerate(scores))]
    original.tokenizer.backend_tokenizer.model = tokenizers.models.Unigram(words, unk_id=2)
    content = original.tokenizer.backend_tokenizer.to_str()
    plain = tokenizers.Tokenizer.from_str(content)
    ours = tokenizers.Tokenizer.from_str(exported_tokenizer(original))
    off = [sum(found != score for (_, found), (_, score) in zip(
        json.loads(tokenizer.to_str())['model']['vocab'], words)) for tokenizer in (plain, ours)]
    assert off[1] <= 20 < 100 < off[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize('name, pooling', TOWERS)
def test_towers_are_exported_with_a_local_folder(open_clip, hub, small, tmp_path, capsys, name,
                                                 pooling):
    folder = hub(name)
    model, weights = small(name, folder)
    assert cli.main(['text-encoder', 'open-clip', '--model', model, '--weights', str(weights),
                     '--hf-folder', str(folder), '--out', str(tmp_path / 'clip')]) == 0
    assert 'the tokens are equal' in capsys.readouterr().out
    encoder = OnnxTextEncoder(tmp_path / 'clip')
    assert (encoder.folder.pooling, encoder.templates) == (pooling, 'caption')
    assert encoder.space == (f'open_clip/{model}/'
                             f'{hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}')
    assert encoder.folder.provenance['tokenizer'] == text_configuration(name)['hf_tokenizer_name']
    texts = TEXTS[::7]
    tokens = tokenizer_of(open_clip, model, folder)(texts)
    np.testing.assert_array_equal(encoder.tokens(texts)[0], tokens.numpy())
    with torch.inference_mode():
        expected = original(open_clip, model, folder, weights).encode_text(tokens, normalize=True)
    assert np.abs(encoder.encode(texts) - expected.numpy()).max() <= TOLERANCE
    assert np.linalg.norm(expected[0] - expected[5]) > 0.01


def test_large_weights_lie_in_a_file_of_their_own(open_clip, hub, small, tmp_path, monkeypatch):
    name = 'ViT-B-16-SigLIP'
    model, weights = small(name, hub(name))
    monkeypatch.setattr(text_encoder, 'MAX_ONNX_BYTES', 1000)
    tower = clip_text_tower(model, weights, hf_folder=hub(name))
    folder, found = export_text_encoder(tower, tmp_path / 'clip')
    assert found.difference <= TOLERANCE and set(folder.files) == {
        'text.onnx', 'tokenizer.json', WEIGHTS}
    assert (folder.path / WEIGHTS).stat().st_size > 100_000
    moved = (tmp_path / 'clip').rename(tmp_path / 'moved')
    assert np.abs(np.linalg.norm(OnnxTextEncoder(moved).encode(['road']), axis=1) - 1) < 1e-5
    with open(moved / WEIGHTS, 'r+b') as stream:
        stream.write(b'other')
    with pytest.raises(TextEncoderError, match='text.onnx.data has sha256'):
        load_text_encoder_folder(moved)


@pytest.mark.parametrize('model, folder, says', [
    ('ViT-B-16-SigLIP', None, 'files from timm/ViT-B-16-SigLIP on the Hugging Face hub, and no'),
    ('ViT-B-16-SigLIP', 'missing', 'missing is no folder'),
    ('ViT-B-16-SigLIP', 'empty', 'no tokenizer that transformers can read'),
    ('roberta-ViT-B-32', 'bare', 'no config.json, which states the text tower'),
    ('RN50', 'empty', 'takes nothing from --hf-folder'),
    ('ViT-B-15', 'empty', "knows no model 'ViT-B-15'")])
def test_folders_that_do_not_do_are_one_line(open_clip, tmp_path, capsys, model, folder, says):
    (tmp_path / 'empty').mkdir()
    if folder == 'bare':
        write_hf_folder(tmp_path / 'bare', 'roberta', ['a road'] * 3, config=False)
    weights = tmp_path / 'weights.pt'
    weights.write_bytes(b'')
    option = [] if folder is None else ['--hf-folder', str(tmp_path / folder)]
    code = cli.main(['text-encoder', 'open-clip', '--model', model, '--weights', str(weights),
                     *option, '--out', str(tmp_path / 'out')])
    message = capsys.readouterr().err
    assert code == 2 and says in message and message.count('\n') == 1, message
    if folder in (None, 'missing'):
        assert 'hf download timm/ViT-B-16-SigLIP' in message and '--hf-folder FOLDER' in message
    assert not (tmp_path / 'out').exists()
