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
Tokenizers of the Hugging Face hub as open_clip uses them, as JSON of the library tokenizers.

What open_clip does around them becomes part of the JSON: its cleaning of texts, the length it pads
and cuts to, and its padding in place of the token that ends a text (strip_sep_token). Blanks
around a text are left to the caller: the steps of a tokenizers file apply between special tokens
too, where blanks have a meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
from pathlib import Path
from typing import Any, Optional

from owseg_training.clip_cleaning import cleaning_of, cleaning_steps
from owseg_training.open_clip_models import hub_folder, import_open_clip, OpenClipError
import tokenizers
from tokenizers import normalizers

# No query holds it, nor any text of a character with a meaning.
NO_TEXT = '\U0010ffff'


def local_tokenizer(name: str, text: Mapping[str, Any], hf_folder: Optional[str | Path]) -> Any:
    """
    Return open_clip's HFTokenizer of a model, read from a local folder.

    text: of open_clip_models.text_configuration. hf_folder: with the files of the repository
    text['hf_tokenizer_name'], tokenizer.json or what transformers makes it of.
    Raises OpenClipError where the folder is missing or transformers cannot read it.
    """
    repository = text['hf_tokenizer_name']
    folder = hub_folder(name, repository, hf_folder)
    open_clip = import_open_clip()
    length = text.get('context_length', open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    try:
        return open_clip.tokenizer.HFTokenizer(
            str(folder), context_length=length, tokenizer_mode=text.get('tokenizer_mode'),
            local_files_only=True, **text.get('tokenizer_kwargs', {}))
    # transformers fails in as many ways as there are files that it looks for.
    except (RuntimeError, ValueError, KeyError, OSError, AttributeError, TypeError,
            ImportError) as error:
        raise OpenClipError(
            f'{folder} holds no tokenizer that transformers can read: '
            f'{" ".join(str(error).split())[:200]}; it needs the tokenizer.json (or .model) and '
            f'tokenizer_config.json of {repository}') from error


def exported_tokenizer(original: Any) -> str:
    """
    Return open_clip's HFTokenizer as JSON of the library tokenizers.

    Raises OpenClipError for one that the library does not run, or of another mode.
    """
    backend = getattr(original.tokenizer, 'backend_tokenizer', None)
    if original.tokenizer_mode or not isinstance(backend, tokenizers.Tokenizer):
        raise OpenClipError(f'{type(original.tokenizer).__name__} in mode '
                            f'{original.tokenizer_mode or "standard"!r} has no form as JSON of '
                            'the library tokenizers')
    # The first text sets the length to pad and cut to.
    original(['road'])
    content = json.loads(backend.to_str())
    _hide_what_cleaning_breaks(content, original)
    if original.strip_sep_token:
        _replace_token(content['post_processor'], original.tokenizer.sep_token_id, 0)
    steps = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps.normalizer = normalizers.Sequence(
        cleaning_steps(cleaning_of(import_open_clip(), original)))
    cleaning = json.loads(steps.to_str())['normalizer']
    if content['normalizer'] is not None:
        cleaning['normalizers'].append(content['normalizer'])
    content['normalizer'] = cleaning
    return _dumps(content)


def _dumps(content: dict[str, Any]) -> str:
    """
    Return a tokenizers file's content as JSON, scores so that they are read as they are.

    The library reads a number as its digits, made a float, over a power of ten: off by one bit
    for every tenth score. Long repetitions of a word have many segmentations of the same score,
    and such a bit decides between them.
    """
    vocabulary = content['model']['vocab']
    if not isinstance(vocabulary, list):
        return json.dumps(content, ensure_ascii=False)
    pairs = ','.join(f'[{json.dumps(word)},{_decimal(score)}]' for word, score in vocabulary)
    model = json.dumps({**content['model'], 'vocab': []}, ensure_ascii=False)
    rest = json.dumps({**content, 'model': None}, ensure_ascii=False)
    model = model.replace('"vocab": []', f'"vocab": [{pairs}]', 1)
    return f'{rest[:rest.rindex(chr(34) + "model" + chr(34))]}"model": {model}}}'


def _decimal(score: float) -> str:
    """Return digits that make the score by one division; of one in a thousand its own digits."""
    size, sign = abs(score), '-' if score < 0 else ''
    for places in range(23):
        scaled = size * 10.0 ** places
        for value in (scaled, math.nextafter(scaled, 0), math.nextafter(scaled, math.inf)):
            if value < 2 ** 64 and value.is_integer() and value / 10.0 ** places == size:
                digits = str(int(value)).rjust(places + 1, '0')
                cut = len(digits) - places
                return f'{sign}{digits[:cut]}.{digits[cut:] or "0"}'
    return repr(score)


def _hide_what_cleaning_breaks(content: dict[str, Any], original: Any) -> None:
    """
    Take special tokens that no cleaned text holds out of a tokenizers file's content.

    The library looks for them before it cleans. Those that are no words of the model are renamed
    to what no text holds, because the others' numbers follow from theirs.
    """
    words = content['model']['vocab']
    words = set(words if isinstance(words, dict) else (word for word, _ in words))
    kept = []
    for token in content['added_tokens']:
        within = f'x{token["content"]}x'
        if original.clean_fn(within) == within:
            kept.append(token)
        elif token['content'] not in words:
            kept.append({**token, 'content': NO_TEXT + token['content']})
    content['added_tokens'] = kept


def _replace_token(processor: Any, old: int, new: int) -> None:
    """Change the number of a token in a post-processor of a tokenizers file, in place."""
    if isinstance(processor, list):
        for part in processor:
            _replace_token(part, old, new)
    elif isinstance(processor, dict):
        for key, value in processor.items():
            if key == 'ids':
                processor[key] = [new if number == old else number for number in value]
            elif key in ('sep', 'cls'):
                processor[key] = [value[0], new if value[1] == old else value[1]]
            else:
                _replace_token(value, old, new)
