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

"""Region-aware anomaly (RAML 3.2): how little a region is like any known class."""

from __future__ import annotations

import numpy as np
from owseg_training.regions import nearest_region


def known_similarity(embeddings: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """
    Return P = max_l cos(f, f_l), float [R], of region embeddings [R, D] (RAML eq 4).

    prototypes [K, D] of the known classes; rows of NaN are classes without one.  Raises
    ValueError when no class has a prototype.
    """
    there = prototypes[~np.isnan(prototypes).any(1)]
    if not len(there):
        raise ValueError('no known class has a prototype; train the metric head on a set with '
                         'labels of these classes')
    unit = there / np.linalg.norm(there, axis=1, keepdims=True)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.maximum(norms, 1e-12) @ unit.T).max(1)


def region_anomaly(scores: np.ndarray, regions: np.ndarray, similarity: np.ndarray, *,
                   offset: float = 0.0, edges: str = 'nearest',
                   raml_paper: bool = False) -> np.ndarray:
    """
    Return the uncertainty intensity Q = -max_l U_l P(R_i), float32 [H, W] (RAML eq 5).

    scores: U, float [K, H, W]; regions: int [H, W], 1 to T, 0 on edges; similarity: P, float [T].
    As printed the order flips where a factor is negative: P below 0 would make the unlike less
    strange, and two negatives make a strange pixel a known one.  So P counts as 0 below 0, and U
    as offset + U, 0 below that: the class scores of a mask classifier are never negative, for
    other logits give minus the lowest that counts.
    edges: what pixels of no region have, 'nearest' (P of the nearest region) or 'pixel' (P = 1,
    so that Q is max-logit).
    raml_paper: stretch Q to 0..1 over the frame, as the paper's evaluation does; then the most
    ordinary frame has a pixel of 1, and no threshold holds from frame to frame.  By default Q is
    raw, in [-max U, 0].
    """
    if edges not in ('nearest', 'pixel'):
        raise ValueError(f'edges must be nearest or pixel, not {edges!r}')
    if edges == 'nearest':
        regions = nearest_region(regions)
    known = np.concatenate(([1.0], np.clip(similarity, 0, 1))).astype(np.float32)
    score = -np.maximum(scores.max(0) + offset, 0) * known[regions]
    if raml_paper:
        spread = score.max() - score.min()
        return ((score - score.min()) / max(spread, 1e-12)).astype(np.float32)
    return score.astype(np.float32)
