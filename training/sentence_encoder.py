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
The sentence encoder all-MiniLM-L6-v2 as a text tower: what owseg_ros writes against transformers.

owseg_ros.language.minilm reads and writes it without torch. Here the same is compared with
transformers' BERT and tokenizer on the weights, on many texts, before it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from owseg_ros.language.bert_onnx import mean_pooled_bert, UNUSED
from owseg_ros.language.minilm import minilm_parts
from owseg_training.text_encoder import TextExportError, TextTower
from owseg_training.torchvision_compat import make_torchvision_importable
import tokenizers
import torch
from torch import nn
from torch.nn import functional


class MeanPooledBert(nn.Module):
    """(input_ids, attention_mask) int64 [n, tokens] to float32 [n, D] of unit length."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the mean of the token embeddings over the mask, at unit length."""
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(tokens.dtype)
        return functional.normalize((tokens * weights).sum(1) / weights.sum(1), dim=-1)


def bert_tower(config: Mapping[str, Any], weights: Mapping[str, np.ndarray],
               tokenizer: tokenizers.Tokenizer, manifest: Mapping[str, Any]) -> TextTower:
    """
    Return the tower of a BERT whose tokens are averaged; the arguments are minilm.BertParts.

    Raises TextExportError where transformers is not installed, and TextEncoderError where the
    weights are not those of the configuration.
    """
    make_torchvision_importable()
    try:
        from transformers import BertConfig, BertModel, BertTokenizer
    except ImportError as error:
        raise TextExportError(f'{error}; install the extra `training`') from error
    network = mean_pooled_bert(config, weights)
    bert = BertModel(BertConfig(**config), add_pooling_layer=False)
    kept = {name: torch.tensor(array, dtype=torch.float32) for name, array in weights.items()
            if name not in UNUSED}
    bert.load_state_dict(kept)
    # transformers' own BERT tokenizer, which shares with the JSON only the words.
    reference = BertTokenizer(vocab=tokenizer.get_vocab(with_added_tokens=True),
                              do_lower_case=True)
    return TextTower(
        network=MeanPooledBert(bert), onnx=lambda path: path.write_bytes(network), masked=True,
        tokenizer=tokenizer.to_str(),
        original=lambda texts: reference(list(texts), truncation=True,
                                         max_length=manifest['max_tokens'])['input_ids'],
        manifest=manifest)


def minilm_tower(path: str | Path) -> TextTower:
    """
    Return all-MiniLM-L6-v2 as a tower; path: as owseg_ros.language.minilm.read_files takes it.

    Raises TextEncoderError and TextExportError.
    """
    return bert_tower(*minilm_parts(path))
