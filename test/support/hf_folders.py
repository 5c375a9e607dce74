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
Folders as a person downloads them from the Hugging Face hub: tokenizers of each kind, configs.

The tokenizers are of the real kinds, special tokens and settings, trained on a few texts.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

# Which kind open_clip's repositories have.
KIND_OF = {
    'bert-base-uncased': 'bert', 'roberta-base': 'roberta', 'google/mt5-base': 't5',
    'google/mt5-xl': 't5', 'facebook/nllb-200-distilled-600M': 'nllb',
    'facebook/nllb-200-distilled-1.3B': 'nllb', 'facebook/xlm-v-base': 'xlm_roberta',
    'xlm-roberta-base': 'xlm_roberta', 'xlm-roberta-large': 'xlm_roberta'}
SPECIAL = {
    'bert': ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'],
    'roberta': ['<s>', '<pad>', '</s>', '<unk>', '<mask>'],
    't5': ['<pad>', '</s>', '<unk>'],
    'siglip': ['<pad>', '</s>', '<unk>'],
    'xlm_roberta': ['<s>', '<pad>', '</s>', '<unk>'],
    'nllb': ['<s>', '<pad>', '</s>', '<unk>'],
    'gemma': ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>']}
NAMED = {'<s>': 'bos_token', '</s>': 'eos_token', '<pad>': 'pad_token', '<unk>': 'unk_token',
         '<mask>': 'mask_token', '<eos>': 'eos_token', '<bos>': 'bos_token',
         '[PAD]': 'pad_token', '[UNK]': 'unk_token', '[CLS]': 'cls_token', '[SEP]': 'sep_token',
         '[MASK]': 'mask_token'}
SETTINGS = {
    'bert': {'tokenizer_class': 'BertTokenizer', 'do_lower_case': True},
    'roberta': {'tokenizer_class': 'RobertaTokenizer', 'cls_token': '<s>', 'sep_token': '</s>',
                'add_prefix_space': False},
    't5': {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0},
    # Padded with the token that ends a text.
    'siglip': {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0, 'pad_token': '</s>'},
    'xlm_roberta': {'tokenizer_class': 'XLMRobertaTokenizer', 'cls_token': '<s>',
                    'sep_token': '</s>', 'mask_token': '<mask>'},
    'nllb': {'tokenizer_class': 'NllbTokenizer', 'cls_token': '<s>', 'sep_token': '</s>',
             'mask_token': '<mask>', 'src_lang': 'eng_Latn'},
    'gemma': {'tokenizer_class': 'GemmaTokenizer', 'padding_side': 'right',
              'add_bos_token': False, 'add_eos_token': True}}
# Small ones of the text towers that are models of transformers.
CONFIGS = {
    'roberta': {'model_type': 'roberta', 'hidden_size': 32, 'num_hidden_layers': 2,
                'num_attention_heads': 2, 'intermediate_size': 64, 'pad_token_id': 1,
                'max_position_embeddings': 90, 'type_vocab_size': 1},
    'xlm_roberta': {'model_type': 'xlm-roberta', 'hidden_size': 32, 'num_hidden_layers': 2,
                    'num_attention_heads': 2, 'intermediate_size': 64, 'pad_token_id': 1,
                    'max_position_embeddings': 90, 'type_vocab_size': 1},
    't5': {'model_type': 'mt5', 'd_model': 32, 'd_kv': 16, 'd_ff': 64, 'num_layers': 2,
           'num_heads': 2, 'pad_token_id': 0, 'is_encoder_decoder': True,
           'feed_forward_proj': 'gated-gelu'},
    'nllb': {'model_type': 'm2m_100', 'd_model': 32, 'encoder_layers': 2, 'decoder_layers': 1,
             'encoder_attention_heads': 2, 'decoder_attention_heads': 2, 'encoder_ffn_dim': 64,
             'decoder_ffn_dim': 64, 'pad_token_id': 1, 'max_position_embeddings': 128}}


def kind_of(repository: str) -> str:
    """Return the kind of tokenizer of a repository that open_clip names."""
    if 'SigLIP2' in repository:
        return 'gemma'
    return KIND_OF.get(repository, 'siglip')


def trained_tokenizer(kind: str, texts: Sequence[str], words: int = 500) -> tokenizers.Tokenizer:
    """Return a tokenizer of a kind, trained on texts."""
    special = SPECIAL[kind]
    if kind == 'bert':
        tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=words, special_tokens=special,
                                            show_progress=False)
    elif kind in ('t5', 'siglip', 'xlm_roberta'):
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=words, special_tokens=special,
                                          unk_token='<unk>', show_progress=False)
    elif kind == 'roberta':
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=words, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE(
            unk_token='<unk>', byte_fallback=kind == 'gemma', fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        bytes_ = [f'<0x{byte:02X}>' for byte in range(256)] if kind == 'gemma' else []
        trainer = trainers.BpeTrainer(vocab_size=words + len(bytes_), show_progress=False,
                                      special_tokens=special + bytes_)
    tokenizer.train_from_iterator(texts, trainer)
    if kind == 'gemma':
        # Bytes are words of the model alone; blanks and their like are special ones as well.
        content = json.loads(tokenizer.to_str())
        content['added_tokens'] = content['added_tokens'][:len(special)]
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False)
                              for text in ('\n', '<table>', 'road_sign')])
        tokenizer.post_processor = processors.TemplateProcessing(
            single='$A <eos>', special_tokens=[('<eos>', 1)])
    elif kind in ('bert', 'roberta', 'xlm_roberta'):
        begin, end = ('[CLS]', '[SEP]') if kind == 'bert' else ('<s>', '</s>')
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{begin} $A {end}',
            special_tokens=[(part, special.index(part)) for part in (begin, end)])
    elif kind in ('t5', 'siglip'):
        tokenizer.post_processor = processors.TemplateProcessing(
            single='$A </s>', special_tokens=[('</s>', 1)])
    if kind in ('xlm_roberta', 'nllb'):
        tokenizer.add_special_tokens([
            *(['eng_Latn', 'deu_Latn'] if kind == 'nllb' else []),
            tokenizers.AddedToken('<mask>', lstrip=True, special=True, normalized=False)])
    return tokenizer


def write_hf_folder(folder: Path, kind: str, texts: Sequence[str], *, config: bool = True,
                    **changes: object) -> Path:
    """
    Write what a repository of a kind of tokenizer holds and return the folder.

    config: with a small config.json, where the kind has one; changes: to it.
    """
    folder.mkdir(parents=True)
    tokenizer = trained_tokenizer(kind, texts)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({
        **{NAMED[token]: token for token in SPECIAL[kind]}, **SETTINGS[kind],
        'model_max_length': 512}))
    if config and kind in CONFIGS:
        (folder / 'config.json').write_text(json.dumps({
            **CONFIGS[kind], 'vocab_size': tokenizer.get_vocab_size(), **changes}))
    return folder


def add_small_model(open_clip, name: str, folder: Path) -> str:
    """Let open_clip know a model as one of its own but for its size; return what it is called."""
    config = open_clip.get_model_config(name)
    text = config['text_cfg']
    if 'hf_model_name' not in text:
        text.update(width=32, heads=2, layers=2, vocab_size=1000)
    # Some towers have no projection; then both dimensions are one.
    projected = text.get('hf_proj_type') or (
        'hf_model_name' not in text and text.get('proj_type') != 'none')
    config['embed_dim'] = 24 if projected else 32
    config['vision_cfg'] = {
        'image_size': 32, 'layers': 1, 'width': 32, 'head_width': 16, 'patch_size': 16,
        'output_tokens': 'multimodal_cfg' in config}
    if 'multimodal_cfg' in config:
        config['multimodal_cfg'].update(width=32, heads=2, layers=1)
    (folder / f'small-{name}.json').write_text(json.dumps(config))
    open_clip.add_model_config(folder / f'small-{name}.json')
    return f'small-{name}'
