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
Make timm importable beside a torch build that does not match torchvision's.

PyPI's torchvision is built for CUDA; beside a CPU-only torch its compiled operators do not load
and `import torchvision` stops at `operator torchvision::nms does not exist`.  timm needs only
torchvision's Python half, so declaring the two operator schemas is enough.  A torchvision that
matches its torch is left alone.
"""

from __future__ import annotations

import importlib.metadata

import torch

_DECLARED: list[torch.library.Library] = []


def make_torchvision_importable() -> None:
    """Declare torchvision's operator schemas where its compiled half cannot load."""
    if _DECLARED or torch.version.cuda is not None:
        return
    try:
        version = importlib.metadata.version('torchvision')
    except importlib.metadata.PackageNotFoundError:
        return
    if '+cpu' in version:
        return
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for operator in ('nms', 'qnms'):
        library.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _DECLARED.append(library)
