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
"""What every engine promises, whatever runs the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Protocol, Sequence

import numpy as np
from owseg_ros.bundle import InputSpec
from owseg_ros.engine.status import EngineStatus
from owseg_ros.errors import OwsegError
from owseg_ros.frame import Frame


class EngineError(OwsegError):
    """The network cannot be loaded or run; the message says what to do."""


@dataclass(frozen=True)
class NetworkOutput:
    """
    What the network says about a batch of B frames.

    mask_logits: float32 [B, N, h, w], one logit map a query (usually at stride 4); a torch tensor
        on the GPU, float32 or float16, where that was asked for and the network ran there.
    class_probabilities: float32 [B, N, K], softmax over all columns with the last ("no
        object") dropped and the rest not renormalised.
    outlier_probabilities: float32 [B, N], of the same softmax, where the network has a class
        for outliers; else None.
    region_embeddings: float32 [B, N, D] of unit length, or None where the network has none or
        they were not asked for.
    frozen_region_embeddings: as those, pooled from a frozen image tower.
    text_features: float32 [B, D, h, w], not normalised: their mean under a mask, normalised, is
        the embedding of that region; None where they were not asked for.
    pixel_features: float32 [B, C, h, w], or None where they were not asked for.
    no_object_probabilities: float32 [B, N], the last column of the softmax.
    preprocess_ms, network_ms: time taken by the whole batch.
    """

    mask_logits: Any
    class_probabilities: np.ndarray
    region_embeddings: Optional[np.ndarray]
    pixel_features: Optional[np.ndarray]
    preprocess_ms: float
    network_ms: float
    outlier_probabilities: Optional[np.ndarray] = None
    frozen_region_embeddings: Optional[np.ndarray] = None
    text_features: Optional[np.ndarray] = None
    no_object_probabilities: Optional[np.ndarray] = None


class Engine(Protocol):
    """
    Runs a bundle's network on batches of frames.

    name: the engine's name in the registry, such as 'onnx'.
    description: name, where it runs and with how many threads, for people.
    precision: fp32, fp16, bf16 or int8: what the network is computed in.
    input: size and normalisation of the network's input.
    status: what it is doing (engine.status).
    on_gpu: whether a GPU runs the network now, so that the CPU is free for other work meanwhile.

    An engine serves one thread at a time: it reuses its buffers from call to call.
    """

    name: str
    description: str
    precision: str
    input: InputSpec  # noqa: A003
    status: EngineStatus
    on_gpu: bool

    def infer(self, frames: Sequence[Frame], *, pixel_features: bool = False,
              text_features: bool = False, region_embeddings: bool = True,
              masks_on_device: bool = False) -> NetworkOutput:
        """
        Run the network once on frames of any sizes; arrays of the result are the caller's.

        They are read while the next frames are in the network, in another thread.

        The features must be there where they are asked for; region embeddings are left out
        where the network has none. masks_on_device: leave the mask logits on the GPU, where the
        engine runs there with torch; other engines return them as an array all the same. Their
        values are there when this returns, for any stream.
        Raises EngineError if the network fails, or produces values that are not finite, but for
        pixel_features: whoever looks at them checks what is seen (engine.network.check_finite).
        """

    def run_batch(self, batch: np.ndarray, outputs: Sequence[str]) -> list[Any]:
        """
        Run the network alone, on frames that somebody else has prepared.

        batch: normalised float32 [B, 3, H, W] of the size of `input`; outputs: keys of the
        bundle's outputs. Returns them, the first one left on the GPU as masks_on_device leaves
        the masks. Raises EngineError as infer does, but looks at no values.
        """

    def warm_up(self, batch: int = 1) -> float:
        """
        Run blank frames until buffers and kernels are set up; return ms of the last pass.

        batch: frames in one pass.
        """

    def close(self) -> None:
        """End what the engine does in the background; it is not used any more."""
