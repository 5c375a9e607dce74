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
"""A small BERT: its configuration, its tokenizer of single characters, and random weights."""

from __future__ import annotations

import numpy as np
from owseg_ros.language.bert_onnx import weight_shapes
from owseg_ros.language.minilm import cut_and_padded
import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors

BERT_CONFIG = {
    'vocab_size': 128, 'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2,
    'intermediate_size': 32, 'max_position_embeddings': 32, 'pad_token_id': 0}
BERT_MANIFEST = {
    'name': 'tiny', 'license': 'Apache-2.0', 'space': 'tiny', 'dim': 16, 'max_tokens': 32,
    'pooling': 'mean', 'templates': 'plain'}


def bert_tokenizer() -> tokenizers.Tokenizer:
    """Return a WordPiece tokenizer of single characters that cuts at 32 tokens."""
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    letters = [chr(code) for code in range(33, 65)] + [chr(code) for code in range(97, 123)]
    words += letters + [f'##{letter}' for letter in letters]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(
        {word: index for index, word in enumerate(words)}, unk_token='[UNK]'))
    tokenizer.add_special_tokens(words[:5])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    return cut_and_padded(tokenizer.to_str(), BERT_MANIFEST['max_tokens'], 0)


def bert_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights of BERT_CONFIG by name, and the pooler that published files hold."""
    random = np.random.default_rng(seed)
    shapes = {**weight_shapes(BERT_CONFIG), 'pooler.dense.weight': (16, 16),
              'pooler.dense.bias': (16,)}
    return {name: random.normal(name.endswith('LayerNorm.weight'), 0.3, shape).astype(np.float32)
            for name, shape in shapes.items()}
