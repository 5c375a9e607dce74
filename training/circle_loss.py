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

"""Circle loss (Sun et al., CVPR 2020; RAML C.4)."""

from __future__ import annotations

import torch
from torch.nn import functional


def circle_loss(embeddings: torch.Tensor, labels: torch.Tensor, margin: float = 0.25,
                gamma: float = 8.0, self_paced: bool = False) -> torch.Tensor:
    """
    Return log(1 + sum_p sum_n exp(gamma (s_n - s_p + m))) over the pairs of a batch (RAML eq 16).

    s_p and s_n are the cosines of all pairs of equal and of different labels; the sums are over
    the pairs of the whole batch, as in the released code, not of one embedding at a time.
    embeddings [R, D] of unit length; labels int [R].
    self_paced: weigh each pair by how far it is from its optimum, as in Sun et al.'s eq 6 and in
    the released code: gamma [s_n + m]+ (s_n - m) and gamma [1 + m - s_p]+ (1 - m - s_p), the
    brackets without gradient.
    Returns a scalar, 0 where there is no pair of either kind.
    """
    first, second = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
    cosines = (embeddings @ embeddings.T)[first, second]
    same = labels[first] == labels[second]
    positive, negative = cosines[same], cosines[~same]
    if not positive.numel() or not negative.numel():
        return embeddings.sum() * 0
    if self_paced:
        negative = (negative.detach() + margin).relu() * (negative - margin)
        positive = (1 + margin - positive.detach()).relu() * (positive - 1 + margin)
    else:
        negative = negative + margin
    return functional.softplus(
        (gamma * negative).logsumexp(0) + (-gamma * positive).logsumexp(0))
