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
Text towers of open_clip, and their tokenizers as JSON of the library tokenizers.

Most models have the byte-pair encoding of CLIP, which open_clip brings along; the others take
theirs, and some of them the configuration of their text tower, from a repository of the Hugging
Face hub, whose files a local folder holds (hf_tokenizer). Of CLIP's encoding U+0345, the combining
iota of Greek, and U+FFFC are cut into other words; for cleaning see clip_cleaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from owseg_ros.bundle import sha256_of
from owseg_training.clip_cleaning import cleaning_of, cleaning_steps
from owseg_training.hf_tokenizer import exported_tokenizer, local_tokenizer
from owseg_training.open_clip_models import (
    import_open_clip, open_clip_model, OpenClipError, text_configuration)
from owseg_training.text_encoder import TextTower, torch_onnx
import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors, Regex
import torch
from torch import nn

BEGIN, END = '<start_of_text>', '<end_of_text>'
# A word, one digit, or other signs; an English ending is a word of its own.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


# What makes one vector of the tokens, by what open_clip calls it.
POOLINGS = {'argmax': 'end_of_text', 'eos': 'end_of_text', 'first': 'first_token',
            'last': 'last_token', 'MeanPooler': 'mean', 'ClsPooler': 'first_token',
            'ClsLastHiddenStatePooler': 'first_token'}


class ClipText(nn.Module):
    """input_ids int64 [n, context] to float32 [n, D] of unit length, by an open_clip model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # What texts do not pass would take memory at export.
        for part in ('visual', 'text_decoder'):
            if hasattr(model, part):
                delattr(model, part)
        transformer = getattr(getattr(model, 'text', None), 'transformer', None)
        if hasattr(transformer, 'set_attn_implementation'):
            # torch cannot export the fused attention of mT5.
            transformer.set_attn_implementation('eager')
        # Of the wrapper too: exporters restore its mode in the model.
        self.eval()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the normalised projection of what the text tower pools."""
        return self.model.encode_text(input_ids, normalize=True)

    @property
    def pooling(self) -> str:
        """Return how one vector is made of the tokens, in a manifest's words."""
        text = getattr(self.model, 'text', self.model)
        if hasattr(text, 'pooler'):
            return POOLINGS[type(text.pooler).__name__]
        return POOLINGS[getattr(text, 'pool_type', None) or text.text_pool_type]


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
        *cleaning_steps(cleaning_of(import_open_clip(), original)), normalizers.Strip()])
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
                    license_name: str = 'unknown',
                    hf_folder: Optional[str | Path] = None) -> TextTower:
    """
    Return the text tower of an open_clip model.

    name: of the model, as open_clip.list_models() has it. weights: a local checkpoint that
    open_clip reads, None for random weights. space: name of the embedding space, by default
    the model's name and the start of the weights' sha256. license_name: of the weights.
    hf_folder: the files of the repository of the Hugging Face hub that open_clip names for the
    model's tokenizer, and its text tower where that is a model of transformers.
    Raises OpenClipError as open_clip_models.open_clip_model does, and where the model needs such a
    folder that is not given or cannot be read, or needs none and one is given.
    """
    open_clip, text = import_open_clip(), text_configuration(name)
    repository = text.get('hf_tokenizer_name')
    if repository:
        original = local_tokenizer(name, text, hf_folder)
        tokenizer = exported_tokenizer(original)
    else:
        if hf_folder is not None:
            raise OpenClipError(f'{name} has the tokenizer of CLIP, which comes with open_clip, '
                                'and takes nothing from --hf-folder')
        original = open_clip.get_tokenizer(name)
        tokenizer = clip_tokenizer(original).to_str()
    network = ClipText(open_clip_model(name, weights, hf_folder))
    digest = 'random' if weights is None else sha256_of(weights)
    context = original.context_length

    def tokens(texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text and its padding."""
        return original(list(texts)).tolist()

    with torch.inference_mode():
        dim = network(torch.tensor(tokens(['road']))).shape[1]
    provenance = {'model': f'open_clip {name}', 'weights_sha256': digest}
    if repository:
        provenance['tokenizer'] = repository
    return TextTower(
        network=network, onnx=lambda path: torch_onnx(network, context, path), masked=False,
        tokenizer=tokenizer, original=tokens,
        manifest={
            'name': name, 'license': license_name,
            'space': space or f'open_clip/{name}/{digest[:12]}', 'dim': dim,
            'max_tokens': context, 'pooling': network.pooling, 'templates': 'caption',
            'provenance': provenance})
