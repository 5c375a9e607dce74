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
"""FP16 and static INT8 variants of an exported network, and how far they are from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from owseg_ros.engine.precision import PRECISIONS, RUNTIMES, to_fp16, to_int8
from owseg_ros.readout import reference
from owseg_training.parity import differences

__all__ = ['difference', 'PRECISIONS', 'RUNTIMES', 'to_fp16', 'to_int8']


def _session(path: str | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def difference(reference_path: str | Path, path: str | Path, images: Sequence[np.ndarray],
               batch: int = 1) -> dict[str, Any]:
    """
    Compare a variant with the network that it was made of, on the CPU.

    images: normalised float32 [3, H, W]; batch: as for to_int8.
    Returns mask_logits and class_logits (largest |a - b| / max(1, |a|)), same_class (share of
    pixels with the same semantic class at the masks' size), anomaly_score (mean |a - b| of RbA).
    """
    sessions = [_session(reference_path), _session(path)]
    names = ['mask_logits', 'class_logits']
    pairs, same, score = [], [], []
    for image in images:
        feed = {sessions[0].get_inputs()[0].name: np.repeat(image[None], batch, 0)}
        outputs = [session.run(names, feed) for session in sessions]
        pairs.append(outputs)
        scores = [reference.class_scores(
            masks[0], reference.class_probabilities(classes)[0], masks.shape[2:])
            for masks, classes in outputs]
        a, b = (reference.semantic(values) for values in scores)
        same.append(float((a == b).mean()))
        a, b = (reference.rba(values) for values in scores)
        score.append(float(np.abs(a - b).mean()))
    return {**differences(names, pairs), 'same_class': float(np.mean(same)),
            'anomaly_score': float(np.mean(score)), 'frames': len(images)}
