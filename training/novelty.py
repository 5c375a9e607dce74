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

"""What a bundle needs to be taught classes: the section novelty of its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from owseg_training.class_regions import ClassRegions
from owseg_training.network.metric_head import MetricHead
from owseg_training.onnx_traces import remove_traces
from owseg_training.prototypes import KNOWN_PROTOTYPES, prototype
import torch

METRIC_HEAD = 'metric_head.onnx'
# RAML's theta_novel (C.1), where there is nothing to calibrate on.
THRESHOLD = 0.8
# RAML's larger number of labelled pictures a class.
SHOTS = 5
OWN = 0.95
FRAMES = 51


def novelty_section(dim: int) -> dict[str, Any]:
    """Return the section before its threshold is chosen; see bundle.NoveltyInfo."""
    return {'metric_head': METRIC_HEAD, 'dim': dim, 'known_prototypes': KNOWN_PROTOTYPES,
            'threshold': THRESHOLD,
            'operating_point': "RAML's; no labelled set with these classes was there to "
                               'calibrate on'}


def export_metric_head(head: MetricHead, path: str | Path, opset: int) -> None:
    """Write an ONNX file: 'features' float32 [R, C] to 'embeddings' float32 [R, D], any R."""
    head = head.eval()
    example = torch.zeros(2, head.layers[0].in_features)
    torch.onnx.export(
        head, (example,), str(path), input_names=['features'], output_names=['embeddings'],
        opset_version=opset, dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=({0: torch.export.Dim('regions', min=1, max=65536)},))
    remove_traces(path)
    onnx.checker.check_model(str(path), full_check=True)


def head_parity(head: MetricHead, path: str | Path, means: np.ndarray) -> float:
    """Return the largest difference between torch and ONNX Runtime on means float32 [R, C]."""
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    with torch.inference_mode():
        expected = head(torch.from_numpy(means)).numpy()
    actual, = session.run(['embeddings'], {'features': means})
    return float(np.abs(expected - actual).max())


def taught_cosines(regions: ClassRegions,
                   shots: int = SHOTS) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Return, for each class as if it were taught, cosines of its regions and of all others.

    The prototype is of `shots` of its regions, evenly spread, or half of them; those take no part
    in the cosines.  Classes with a single region are left out.
    """
    found = []
    for index in np.unique(regions.classes):
        own = np.flatnonzero(regions.classes == index)
        count = min(shots, len(own) // 2)
        other = regions.rows[regions.classes != index]
        if not count or not len(other):
            continue
        chosen = own[np.linspace(0, len(own) - 1, count).round().astype(int)]
        center = prototype(regions.rows[chosen])
        found.append((regions.rows[np.setdiff1d(own, chosen)] @ center, other @ center))
    return found


def choose_threshold(regions: ClassRegions, source: str) -> tuple[float, str] | None:
    """
    Choose theta_novel on known classes as if they were taught; None without two such classes.

    It is the largest cosine that OWN of a class's regions reach, in the mean over the classes.
    What other classes reach has no say: the head was trained to part these, and things that it
    has never seen lie closer together than they do.  source: of the regions, for the text.
    Returns (threshold, operating point).
    """
    cosines = taught_cosines(regions)
    if not cosines:
        return None
    candidates = np.arange(0, 100) / 100
    accepted, mistaken = (np.mean([
        (values[part] >= candidates[:, None]).mean(1) for values in cosines], axis=0)
        for part in (0, 1))
    chosen = np.flatnonzero(accepted >= OWN).max(initial=0)
    return float(candidates[chosen]), (
        f'known classes taught from up to {SHOTS} regions of {source}: {accepted[chosen]:.3f} of '
        f'their other regions match, {mistaken[chosen]:.3f} of those of other classes; the head '
        'was trained on these classes')
