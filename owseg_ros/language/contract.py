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
"""What turns texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from owseg_ros.errors import OwsegError

_SMALLEST_MEAN = 1e-4


class TextEncoderError(OwsegError):
    """A text encoder that cannot be used, or that failed; the message says what to do."""


class TextEncoder(Protocol):
    """
    Texts to vectors of one space; encoders inherit what is not theirs to say.

    space: name of the space the vectors live in; region embeddings are comparable only where
        theirs has the same name. dim: D. key: a hash of all that decides the vectors, so that
        stored ones are known to be this encoder's. templates: which prompt templates of the
        vocabulary suit it ('plain' or 'caption').
    """

    space: str
    dim: int
    key: str
    templates: str

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """
        Return float32 [n, D], each row of unit length; [0, D] for no texts.

        May be called from several threads. Raises TextEncoderError.
        """

    def encode_means(self, groups: Sequence[Sequence[str]]) -> np.ndarray:
        """
        Return float32 [n, D], the mean over the texts of each group, at unit length.

        groups: one text or more each, such as a wording in every prompt template (CLIP: Radford
        et al., 2021, section 3.1.4). Raises TextEncoderError, also where texts cancel out.
        """
        if not groups:
            return np.empty((0, self.dim), np.float32)
        rows = self.encode([text for group in groups for text in group])
        counts = np.array([len(group) for group in groups])
        means = np.add.reduceat(rows, np.cumsum(counts) - counts, axis=0) / counts[:, None]
        return unit_rows(means)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return float32 rows at unit length; raise TextEncoderError where one is next to nothing."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norms < _SMALLEST_MEAN).any():
        raise TextEncoderError('the embeddings of the wordings of a query cancel out; ask with '
                               'other synonyms')
    return (rows / norms).astype(np.float32)
