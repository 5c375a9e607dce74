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
"""The text encoder that ONNX Runtime runs: no torch, no network on the way."""

from __future__ import annotations

from collections.abc import Sequence
import os

import numpy as np
import onnxruntime
from owseg_ros.engine.contract import EngineError
from owseg_ros.engine.onnx import (
    one_line, open_session, physical_cores, provider_list, RUNTIME_ERRORS)
from owseg_ros.language.contract import TextEncoder, TextEncoderError
from owseg_ros.language.encoder_folder import AGAIN, load_text_encoder_folder
import tokenizers

OUTPUT = 'text_embedding'
TOKENS = 'input_ids'
MASK = 'attention_mask'
BATCH = 32
_UNIT = 1e-3


class OnnxTextEncoder(TextEncoder):
    """
    Runs the text encoder in a folder; see language.contract.TextEncoder.

    folder: text.onnx, tokenizer.json and manifest.yaml, as owseg text-encoder and owseg-train
        text-encoder write them, and text.onnx.data for a large network. The network takes int64
        input_ids [n, tokens] and, where it has such an input, attention_mask of the same shape,
        and returns float32 text_embedding [n, D] of unit length.
    providers: where to run, in order of preference: 'cpu', 'cuda', 'tensorrt'.
    threads: on the CPU; 0 takes one a core that this process may use.

    Raises TextEncoderError where the folder is not valid, a provider is not available, or the
    network does not do what the manifest states; one text is encoded to know.
    """

    def __init__(self, folder: str | os.PathLike, providers: Sequence[str] = ('cpu',),
                 threads: int = 0):
        self.folder = load_text_encoder_folder(folder)
        self.space = self.folder.space
        self.dim = self.folder.dim
        self.templates = self.folder.templates
        # The files decide the vectors, whatever the manifest calls them.
        self.key = '-'.join(self.folder.files[name] for name in sorted(self.folder.files))
        self._tokenizer = self._open_tokenizer()
        try:
            self._session = open_session(self.folder.network, provider_list(providers),
                                         threads or physical_cores())
        except EngineError as error:
            raise TextEncoderError(str(error)) from error
        except RUNTIME_ERRORS as error:
            raise self._error(
                f'ONNX Runtime {onnxruntime.__version__} cannot load {self.folder.network.name}: '
                f'{one_line(error)}; {AGAIN}; or install a newer onnxruntime') from error
        self._inputs = {value.name for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        if not {TOKENS} <= self._inputs <= {TOKENS, MASK} or OUTPUT not in outputs:
            raise self._error(
                f'the network has the inputs {sorted(self._inputs)} and outputs '
                f'{sorted(outputs)}, expected {TOKENS}, perhaps {MASK}, and {OUTPUT}')
        self.encode(['road', 'a traffic cone'])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D]; see TextEncoder."""
        if isinstance(texts, str):
            raise TypeError('encode takes a list of texts, not one text')
        parts = [self._encode(texts[start:start + BATCH])
                 for start in range(0, len(texts), BATCH)]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """
        Return tokens and mask (1 for tokens, 0 for padding), int64 [n, tokens].

        Blanks around a text are no part of it. Padded as the tokenizer says: to a fixed length, or
        to the longest text.
        Raises TextEncoderError for a text that is none, such as one with lone surrogates.
        """
        try:
            # One by one: encode_batch would start a pool of threads for a few words.
            encodings = [self._tokenizer.encode(text.strip()) for text in texts]
        except (AttributeError, TypeError, UnicodeError) as error:
            raise self._error(f'a text cannot be tokenized: {one_line(error)}') from error
        length = max(len(encoding.ids) for encoding in encodings)
        padding = self._tokenizer.padding
        ids = np.full((len(texts), length), padding['pad_id'] if padding else 0, np.int64)
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, :len(encoding.ids)] = encoding.ids
            mask[row, :len(encoding.ids)] = encoding.attention_mask
        return ids, mask

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        ids, mask = self.tokens(texts)
        inputs = {TOKENS: ids, MASK: mask}
        try:
            embeddings, = self._session.run(
                [OUTPUT], {name: inputs[name] for name in self._inputs})
        except RUNTIME_ERRORS as error:
            raise self._error(f'the network failed: {one_line(error)}') from error
        if embeddings.shape != (len(texts), self.dim) or embeddings.dtype != np.float32:
            raise self._error(
                f'the network returned {embeddings.dtype} {list(embeddings.shape)}, expected '
                f'float32 {[len(texts), self.dim]}; {AGAIN}')
        # Not a number fails the comparison.
        if not (np.abs(np.linalg.norm(embeddings, axis=1) - 1) < _UNIT).all():
            raise self._error('the network returned vectors that are not of unit length; '
                              f'{AGAIN}')
        return embeddings

    def _open_tokenizer(self) -> tokenizers.Tokenizer:
        path = self.folder.tokenizer
        try:
            tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
        # tokenizers raises plain Exception for every file it cannot read.
        except Exception as error:  # noqa: B902
            raise self._error(
                f'tokenizers {tokenizers.__version__} cannot load {path.name}: '
                f'{one_line(error)}; {AGAIN}; or install newer tokenizers') from error
        truncation = tokenizer.truncation
        if not truncation or truncation['max_length'] != self.folder.max_tokens:
            raise self._error(
                f'{path.name} does not cut texts at the {self.folder.max_tokens} tokens that '
                f'the manifest states; {AGAIN}')
        return tokenizer

    def _error(self, problem: str) -> TextEncoderError:
        return TextEncoderError(f'Text encoder {self.folder.path}: {problem}')
