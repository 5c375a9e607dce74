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
Text towers of open_clip, and their tokenizer as JSON of the library tokenizers.

The tokenizer of CLIP cleans text with ftfy before it splits it. What that does to texts as
queries are spelt (Unicode NFKC, lower case, no control characters) is repeated here: straight
quotes for curly ones. Two of its repairs have no form in a tokenizers file: HTML entities and
wrongly decoded UTF-8 are read as they are written. U+0345, the combining iota of Greek, and U+FFFC
are cut into other words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from owseg_ros.bundle import sha256_of
from owseg_training.open_clip_models import import_open_clip, open_clip_model
from owseg_training.text_encoder import TextExportError, TextTower, torch_onnx
import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors, Regex
import torch
from torch import nn

BEGIN, END = '<start_of_text>', '<end_of_text>'
# The single and double quotes that ftfy makes straight.
SINGLE_QUOTES, DOUBLE_QUOTES = '[\u02bc\u2018-\u201b]', '[\u201c-\u201f]'
# A word, one digit, or other signs; an English ending is a word of its own.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipText(nn.Module):
    """input_ids int64 [n, context] to float32 [n, D] of unit length, by an open_clip model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Of the wrapper too: exporters restore its mode in the model.
        self.eval()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the normalised projection of the token that ends the text."""
        return self.model.encode_text(input_ids, normalize=True)


def clip_tokenizer(original: Any) -> tokenizers.Tokenizer:
    """
    Return open_clip's SimpleTokenizer as a tokenizer that JSON can hold.

    Texts are cut to, and padded with zeros to, its context length; the end is kept.
    """
    ranks = original.bpe_ranks
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab=original.encoder, merges=sorted(ranks, key=ranks.get),
        end_of_word_suffix='</w>'))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Replace(Regex(SINGLE_QUOTES), "'"),
        normalizers.Replace(Regex(DOUBLE_QUOTES), '"'),
        normalizers.NFC(), normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Strip(),
        normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior='removed', invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.add_special_tokens([BEGIN, END])
    begin, end = original.encoder[BEGIN], original.encoder[END]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{BEGIN} $A {END}', special_tokens=[(BEGIN, begin), (END, end)])
    tokenizer.enable_truncation(original.context_length)
    tokenizer.enable_padding(pad_id=0, pad_token=tokenizer.id_to_token(0),
                             length=original.context_length)
    return tokenizer


def clip_text_tower(name: str, weights: Optional[str | Path], *, space: Optional[str] = None,
                    license_name: str = 'unknown') -> TextTower:
    """
    Return the text tower of an open_clip model.

    name: of the model, as open_clip.list_models() has it. weights: a local checkpoint that
    open_clip reads, None for random weights. space: name of the embedding space, by default
    the model's name and the start of the weights' sha256. license_name: of the weights.
    Raises OpenClipError as open_clip_models.open_clip_model does, and TextExportError where the
    model's tokenizer is not the byte-pair encoding of CLIP.
    """
    open_clip = import_open_clip()
    model = open_clip_model(name, weights)
    digest = 'random' if weights is None else sha256_of(weights)
    original = open_clip.get_tokenizer(name)
    if not isinstance(original, open_clip.SimpleTokenizer):
        raise TextExportError(f'the tokenizer of {name} is a {type(original).__name__}; only '
                              'the byte-pair encoding of CLIP is exported')
    if original.clean_fn is not open_clip.tokenizer.get_clean_fn('lower'):
        raise TextExportError(f'the tokenizer of {name} cleans texts in a way that is not '
                              'exported, only that of CLIP is')
    context = original.context_length

    def tokens(texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens up to the one that ends the text, which is the largest."""
        rows = original(list(texts))
        return [row[:int(row.argmax()) + 1].tolist() for row in rows]

    network = ClipText(model)
    with torch.inference_mode():
        dim = network(torch.zeros(1, context, dtype=torch.int64)).shape[1]
    return TextTower(
        network=network, onnx=lambda: torch_onnx(network, context), masked=False,
        tokenizer=clip_tokenizer(original), original=tokens,
        manifest={
            'name': name, 'license': license_name,
            'space': space or f'open_clip/{name}/{digest[:12]}', 'dim': dim,
            'max_tokens': context, 'pooling': 'end_of_text', 'templates': 'caption',
            'provenance': {'model': f'open_clip {name}', 'weights_sha256': digest}})
