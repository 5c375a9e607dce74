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
"""A network as the robot runs it: ONNX and a torch program, checked against torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from owseg_ros.errors import OwsegError
from owseg_training.network import MaskClassifier
from owseg_training.network.frozen_clip import FROZEN_CLIP
from owseg_training.onnx_operators import TRANSLATIONS
from owseg_training.onnx_traces import remove_traces
from owseg_training.parity import differences, differs, TOLERANCE
from owseg_training.program import export_program, program_parity
import torch
from torch import nn

OPSET = 18
OUTPUTS = ('mask_logits', 'class_logits', 'pixel_features')
LANGUAGE_OUTPUTS = ('region_embeddings', 'text_features')
FROZEN = 'frozen_region_embeddings'


class ExportError(OwsegError, RuntimeError):
    """A network that cannot be exported, or a graph that does not compute what it computes."""


class ExportedNetwork(nn.Module):
    """
    The network as the robot runs it: image to mask logits, class logits, pixel features.

    With a region head also to embeddings and text features. outputs: their names, in order.
    """

    def __init__(self, network: MaskClassifier) -> None:
        super().__init__()
        self.network = network.eval()
        self.outputs = OUTPUTS
        if network.region_head is not None:
            self.outputs += LANGUAGE_OUTPUTS
            if network.config.region_head == FROZEN_CLIP:
                self.outputs += (FROZEN,)
        self.eval()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what `outputs` names, see Prediction and RegionEmbeddings."""
        prediction = self.network(image)
        found = [prediction.mask_logits, prediction.class_logits, prediction.pixel_features]
        embeddings = prediction.embeddings
        if embeddings is not None:
            found += [embeddings.regions, embeddings.text_features]
        if FROZEN in self.outputs:
            found.append(embeddings.frozen)
        return tuple(found)


def export_onnx(network: MaskClassifier, path: str | Path, size: tuple[int, int],
                batch: int | None = None) -> None:
    """
    Write an ONNX file for a fixed (width, height), and any batch size or a fixed one.

    Raises ExportError when the size is no multiple of 32, onnx.checker.ValidationError when the
    graph is not valid.
    """
    width, height = size
    if any(side <= 0 or side % 32 for side in size):
        raise ExportError(f'width and height must be multiples of 32, not {width}x{height}')
    if batch is not None and batch < 1:
        raise ExportError(f'the batch size must be 1 or more, not {batch}')
    # A batch of two, because the exporter specialises a dimension whose example is one.
    example = torch.zeros(batch or 2, 3, height, width)
    shapes = None if batch else {'image': {0: torch.export.Dim('batch', min=1, max=64)}}
    exported = ExportedNetwork(network)
    torch.onnx.export(
        exported, (example,), str(path), input_names=['image'],
        output_names=list(exported.outputs), opset_version=OPSET, dynamo=True, external_data=False,
        dynamic_shapes=shapes, custom_translation_table=TRANSLATIONS, verbose=False)
    remove_traces(path)
    onnx.checker.check_model(str(path), full_check=True)


def parity(network: MaskClassifier, path: str | Path, images: Sequence[torch.Tensor],
           batch: int | None = None) -> dict[str, float]:
    """
    Return how far ONNX Runtime is from torch, per output; see parity.difference.

    images: normalised float32 [3, H, W] of the exported size, run one by one and as one batch, or
    in batches of the fixed size.
    """
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    exported = ExportedNetwork(network)
    if batch:
        padded = [images[i % len(images)] for i in range(-(-len(images) // batch) * batch)]
        batches = [torch.stack(padded[i:i + batch]) for i in range(0, len(padded), batch)]
    else:
        batches = [image[None] for image in images]
        if len(images) > 1:
            batches.append(torch.stack(list(images)))

    def outputs() -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        for inputs in batches:
            with torch.inference_mode():
                expected = [output.numpy() for output in exported(inputs)]
            yield expected, session.run(list(exported.outputs), {'image': inputs.numpy()})

    return differences(exported.outputs, outputs())


def tolerance(size: tuple[int, int], trained: tuple[int, int]) -> float:
    """
    Return by how much `parity` may be off at a size, for a network of a trained size.

    1e-4, and more for more pixels, as the square root of their number: sums over the frame, which
    normalisation and attention take, round so much more (1.0e-4 was seen at 2048x1024, of a
    network of 480x352).
    """
    return TOLERANCE * max(1.0, math.sqrt(math.prod(size) / math.prod(trained)))


def checked_program(network: MaskClassifier, path: Path, onnx_path: Path, size: tuple[int, int],
                    images: Sequence[torch.Tensor], batch: int | None,
                    allowed: float = TOLERANCE) -> dict[str, float]:
    """
    Write the torch program of a network; return how far from its ONNX it is, by output.

    As export_program and program_parity; raises ExportError beyond what is allowed.
    """
    exported = ExportedNetwork(network)
    export_program(exported, exported.outputs, path, size, batch)
    difference = program_parity(path, onnx_path, images, batch)
    if differs(difference, allowed):
        raise ExportError(f'ONNX Runtime differs from the torch program by {difference}, more '
                          f'than {allowed:.1e}')
    return difference
