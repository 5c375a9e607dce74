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
"""The published order of operations: RbA's evaluation, as one would write it in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional


def official_order(size: tuple[int, int], threads: int) -> Callable[
        [np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """
    Return a function from mask logits and class probabilities to ids, confidence and RbA score.

    All masks are enlarged bilinearly to size (height, width), then sigmoid, einsum with the class
    probabilities, maximum, and 1 - sum tanh (RbA eqs 2 to 5, `semantic_inference` of Mask2Former
    and `get_RbA` of the authors' evaluation). Arrays: float32 [N, h, w] and [N, K]; int64,
    float32, float32 [H, W].
    """
    @torch.inference_mode()
    def order(masks: np.ndarray, probabilities: np.ndarray):
        torch.set_num_threads(threads)
        enlarged = functional.interpolate(
            torch.from_numpy(masks)[None], size=size, mode='bilinear', align_corners=False)[0]
        levels = torch.einsum('qc,qhw->chw', torch.from_numpy(probabilities),
                              enlarged.sigmoid())
        best, ids = levels.max(dim=0)
        score = 1 - levels.tanh().sum(dim=0)
        return ids.numpy(), best.numpy(), score.numpy()

    return order
