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
Where the text encoder of this machine lies, and how to open it.

``owseg text-encoder`` puts it there (minilm); nodes, the demo and the doctor look there.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
from pathlib import Path

from owseg_ros.language.cache import CachingTextEncoder
from owseg_ros.language.contract import TextEncoderError
from owseg_ros.language.encoder_folder import MANIFEST

SENTENCE_SPACE = 'sentence-transformers/all-MiniLM-L6-v2'
VARIABLE = 'OWSEG_TEXT_ENCODER'


def default_text_encoder_path(space: str = SENTENCE_SPACE) -> Path:
    """
    Return the folder where the text encoder of a space is looked for, there or not.

    $OWSEG_TEXT_ENCODER where that is set, else the last part of the space's name below
    owseg_ros/text_encoders of $XDG_DATA_HOME (~/.local/share).
    Raises TextEncoderError where this user has no home folder and neither variable is set.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    return _user_folder('XDG_DATA_HOME', '.local/share') / 'text_encoders' / space.split('/')[-1]


def text_embedding_cache() -> Path:
    """
    Return the folder that keeps the embeddings of texts between runs.

    Below $XDG_CACHE_HOME (~/.cache). Raises TextEncoderError as default_text_encoder_path.
    """
    return _user_folder('XDG_CACHE_HOME', '.cache') / 'text_embeddings'


def open_text_encoder(path: str | os.PathLike = '', providers: Sequence[str] = ('cpu',),
                      threads: int = 1, cache: bool = True) -> CachingTextEncoder:
    """
    Return the text encoder of a folder, which remembers what it has encoded.

    path: '' for default_text_encoder_path(); providers, threads: as OnnxTextEncoder takes them;
    cache: keep embeddings in text_embedding_cache() between runs, not only in memory.
    Raises TextEncoderError: there is none (it says what to run), or it cannot be used.
    """
    folder = Path(path).expanduser() if os.fspath(path) else default_text_encoder_path()
    if not (folder / MANIFEST).is_file():
        raise TextEncoderError(f'no text encoder in {folder}; {advice(folder)}')
    # Where it is can be asked without ONNX Runtime, as the doctor does.
    from owseg_ros.language.onnx_encoder import OnnxTextEncoder
    return CachingTextEncoder(OnnxTextEncoder(folder, providers, threads),
                              text_embedding_cache() if cache else None)


def advice(folder: Path) -> str:
    """Return what to run for all-MiniLM-L6-v2 to be in a folder."""
    where = '' if folder == default_text_encoder_path() else f' --out {folder}'
    return f'run: owseg text-encoder{where}'


def _user_folder(variable: str, default: str) -> Path:
    base = os.environ.get(variable)
    try:
        return (Path(base) if base else Path.home() / default) / 'owseg_ros'
    except RuntimeError as error:
        raise TextEncoderError(f'{error}; set {variable} to a folder') from error
