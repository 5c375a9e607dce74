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
"""A text encoder in plain Python, which tells what it was asked to encode."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import threading
import time

import numpy as np
from owseg_ros.language.contract import TextEncoder, TextEncoderError


class CountingEncoder(TextEncoder):
    """
    Encodes a text to a direction that its characters decide; see language.contract.TextEncoder.

    asked: the texts of each call to encode. broken: makes it fail. gate: an event that encode
    waits for, and ``waiting`` is set while it does.
    """

    def __init__(self, dim: int = 8, templates: str = 'plain', key: str = 'counting'):
        self.space = 'counting'
        self.dim = dim
        self.key = key
        self.templates = templates
        self.asked: list[list[str]] = []
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def release_second(self) -> None:
        """Open the gate once a second call waits there, or none has come for a while."""
        end = time.monotonic() + 0.3
        while len(self.asked) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        self.gate.set()

    def vector(self, text: str) -> np.ndarray:
        """Return the float32 [D] of a text."""
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')
        vector = np.random.default_rng(seed).normal(size=self.dim)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D]."""
        self.asked.append(list(texts))
        self.waiting.set()
        assert self.gate.wait(30)
        if self.broken:
            raise TextEncoderError('broken')
        return np.array([self.vector(text) for text in texts],
                        np.float32).reshape(-1, self.dim)
