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
"""The metric head of a bundle: D(.) of RAML, equation 3, run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
from owseg_ros.bundle import Bundle, NoveltyInfo
from owseg_ros.engine import EngineError
from owseg_ros.engine.onnx import one_line, open_session, PROVIDERS, RUNTIME_ERRORS
from owseg_ros.novelty.arrays import NoveltyError, read_arrays

_TOLERANCE = 1e-2


def novelty_of(bundle: Bundle) -> NoveltyInfo:
    """Return the section novelty of a bundle; raise NoveltyError where it has none."""
    if bundle.novelty is None:
        raise NoveltyError(f'{bundle.name} has no metric head, so it cannot be taught classes: '
                           'use one whose manifest has the section novelty (owseg-train metric)')
    return bundle.novelty


class MetricHead:
    """
    Embeds regions in the space that taught classes live in; safe to use from several threads.

    bundle: with a section novelty.
    dim: D of the embeddings. known: float32 [K', D], read-only, unit prototypes of those known
    classes that had a region; known_ids: their K' ids.
    Raises NoveltyError where the bundle has no such section or its prototypes are not those of
    its classes, EngineError where the head is no network that fits the section.
    """

    def __init__(self, bundle: Bundle):
        novelty = novelty_of(bundle)
        self.dim = novelty.dim
        self._path = novelty.metric_head
        # A few rows through two small layers: more threads cost more than they bring.
        try:
            self._session = open_session(self._path, [PROVIDERS['cpu']], 1)
        except RUNTIME_ERRORS as error:
            self._refuse(f'ONNX Runtime {onnxruntime.__version__} cannot load it: '
                         f'{one_line(error)}', error)
        self._input, self.channels = self._check()
        self.known, self.known_ids = _known_prototypes(bundle)

    def embed(self, features: np.ndarray) -> np.ndarray:
        """
        Return embeddings float32 [R, D] of unit length (RAML, equation 3).

        features: float32 [R, C], mean pixel features of R regions. Raises EngineError where C is
        another, or where the head fails or its result is not finite or not of unit length.
        """
        features = np.ascontiguousarray(features, np.float32)
        if features.ndim != 2 or self.channels not in (None, features.shape[1]):
            self._refuse(f'it takes features [R, {self.channels}], not {list(features.shape)}')
        if not len(features):
            return np.empty((0, self.dim), np.float32)
        try:
            embeddings, = self._session.run(None, {self._input: features})
        except RUNTIME_ERRORS as error:
            self._refuse(f'it failed: {one_line(error)}', error)
        if embeddings.shape != (len(features), self.dim):
            self._refuse(f'novelty.dim is {self.dim} and its output is {list(embeddings.shape)}')
        lengths = np.linalg.norm(embeddings, axis=1)
        if not (np.abs(lengths - 1.0) < _TOLERANCE).all():
            self._refuse('its embeddings are not finite or not of unit length')
        return embeddings

    def _check(self) -> tuple[str, int | None]:
        """Return the name of the input and its C, None where that is dynamic."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        for kind, entries in (('input', inputs), ('output', outputs)):
            if len(entries) != 1 or entries[0].type != 'tensor(float)' or (
                    len(entries[0].shape) != 2):
                self._refuse(f'it must have one {kind} float32 with 2 dimensions and has '
                             f'{[(entry.type, entry.shape) for entry in entries]}')
        if outputs[0].shape[1] not in (self.dim, None) and isinstance(outputs[0].shape[1], int):
            self._refuse(f'novelty.dim is {self.dim} and its output is {outputs[0].shape}')
        if isinstance(inputs[0].shape[0], int):
            self._refuse(f'it takes {inputs[0].shape[0]} regions only; export it for any number')
        channels = inputs[0].shape[1]
        return inputs[0].name, channels if isinstance(channels, int) else None

    def _refuse(self, problem: str, cause: Exception | None = None) -> None:
        raise EngineError(f'{self._path}: the metric head cannot be used: {problem}; export the '
                          'bundle again (owseg-train metric)') from cause


def _known_prototypes(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit prototypes that there are, float32 [K', D], and the ids of their classes."""
    novelty = novelty_of(bundle)
    path, shape = novelty.known_prototypes, (bundle.num_classes, novelty.dim)
    arrays = read_arrays(path, 8 * shape[0] * (shape[1] + 1000))
    embeddings, names = arrays.get('embeddings'), arrays.get('names')
    if embeddings is None or embeddings.dtype != np.float32 or embeddings.shape != shape:
        raise NoveltyError(f"{path}: expected 'embeddings' float32 {list(shape)}; export the "
                           'bundle again (owseg-train metric)')
    if names is None or names.tolist() != list(bundle.class_names):
        raise NoveltyError(f"{path}: 'names' are not the classes of {bundle.name} in their order; "
                           'export the bundle again (owseg-train metric)')
    lengths = np.linalg.norm(embeddings, axis=1)
    there = np.isfinite(lengths) & (lengths > 0)
    known = embeddings[there] / lengths[there, None]
    known.setflags(write=False)
    return known, np.flatnonzero(there)
