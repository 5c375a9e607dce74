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
"""What the engines share: batches, the input's memory, and checks of what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
import time
from typing import Any, Sequence

from numba import types
import numpy as np
from owseg_ros.bundle import Bundle
from owseg_ros.compiled import array_types, compile_all, compiled
from owseg_ros.engine.contract import EngineError, NetworkOutput
from owseg_ros.engine.preprocess import normalisation_tables, pack
from owseg_ros.engine.status import EngineStatus, RUNNING
from owseg_ros.frame import Frame
from owseg_ros.readout.reference import softmax

# The axis of the embeddings' length.
EMBEDDING_AXES = {'region_embeddings': 2, 'frozen_region_embeddings': 2, 'text_features': 1}

_WARM_UP_PASSES = 3


class NetworkEngine(ABC):
    """
    Frames in, NetworkOutput out; what runs the network in between is the subclass's.

    bundle: a loaded bundle, whose network has an input float32 [batch, 3, height, width].

    fixed_batch: the batch size that the network is fixed to, or 0; largest_batch: frames that one
    pass takes at most, or 0 for any number. More frames run in chunks.
    """

    name = ''
    description = ''
    precision = 'fp32'
    on_gpu = False
    fixed_batch = 0
    largest_batch = 0

    def __init__(self, bundle: Bundle) -> None:
        compile_all()
        self.bundle = bundle
        self.input = bundle.input
        self._tables = normalisation_tables(bundle.input)
        self._scratch = np.empty((6, bundle.input.height, bundle.input.width), np.uint8)
        self._buffer = np.empty((0, 3, bundle.input.height, bundle.input.width), np.float32)

    @property
    def status(self) -> EngineStatus:
        """Return what the engine is doing."""
        return EngineStatus(RUNNING)

    def close(self) -> None:
        """Let go of what outlives the object; an engine without threads has nothing."""

    def infer(self, frames: Sequence[Frame], *, pixel_features: bool = False,
              text_features: bool = False, region_embeddings: bool = True,
              masks_on_device: bool = False) -> NetworkOutput:
        """
        Run the network on frames of any sizes; see engine.contract.Engine.

        pixel_features, text_features: also return them; region_embeddings: return those that
        there are, the frozen ones too; masks_on_device: leave the mask logits where they are made.
        Raises EngineError.
        """
        if not frames:
            raise EngineError('infer needs at least one frame')
        keys = ['mask_logits', 'class_logits']
        if region_embeddings:
            keys += [key for key in ('region_embeddings', 'frozen_region_embeddings')
                     if self.bundle.outputs.get(key)]
        for key, asked in (('pixel_features', pixel_features), ('text_features', text_features)):
            if not asked:
                continue
            if not self.bundle.outputs.get(key):
                raise EngineError(f'{self.bundle.name} has no {key.replace("_", " ")}; use a '
                                  f'bundle whose manifest names the output {key}')
            keys.append(key)
        names = [self.bundle.outputs[key] for key in keys]
        size = self.fixed_batch or self.largest_batch or len(frames)
        preprocess = network = 0.0
        parts = []
        for start in range(0, len(frames), size):
            chunk = frames[start:start + size]
            begun = time.perf_counter()
            batch = self._pack(chunk, self.fixed_batch or len(chunk))
            packed = time.perf_counter()
            run = self._run_on_device if masks_on_device else self._run
            arrays = run(names, batch)
            preprocess += packed - begun
            network += time.perf_counter() - packed
            parts.append([array[:len(chunk)] for array in arrays])
        arrays = parts[0] if len(parts) == 1 else [self._join(part) for part in zip(*parts)]
        found = dict(zip(keys, arrays))
        self._check(found, len(frames))
        probabilities = softmax(found['class_logits'])
        known = self.bundle.num_classes
        return NetworkOutput(
            mask_logits=found['mask_logits'],
            class_probabilities=probabilities[..., :known],
            outlier_probabilities=(
                probabilities[..., known] if self.bundle.outlier_class else None),
            no_object_probabilities=probabilities[..., -1],
            region_embeddings=found.get('region_embeddings'),
            frozen_region_embeddings=found.get('frozen_region_embeddings'),
            text_features=found.get('text_features'),
            pixel_features=found.get('pixel_features'),
            preprocess_ms=1e3 * preprocess, network_ms=1e3 * network)

    def run_batch(self, batch: np.ndarray, outputs: Sequence[str]) -> list[Any]:
        """Run the network on a batch float32 [B, 3, H, W]; see engine.contract.Engine."""
        names = [self.bundle.outputs[key] for key in outputs]
        size = self.fixed_batch or self.largest_batch or len(batch)
        parts = []
        for start in range(0, len(batch), size):
            chunk = batch[start:start + size]
            count = len(chunk)
            if count < self.fixed_batch:
                chunk = np.resize(chunk, (self.fixed_batch, *chunk.shape[1:]))
            parts.append([array[:count] for array in self._run_on_device(names, chunk)])
        return parts[0] if len(parts) == 1 else [self._join(part) for part in zip(*parts)]

    @abstractmethod
    def _run(self, names: Sequence[str], batch: np.ndarray) -> list[np.ndarray]:
        """
        Return the named outputs for a batch float32 [B, 3, height, width]; raise EngineError.

        The arrays are the caller's. The batch may be overwritten once this returns.
        """

    def _run_on_device(self, names: Sequence[str], batch: np.ndarray) -> list[Any]:
        """Do the same, with the first of the outputs left on the device that it was made on."""
        return self._run(names, batch)

    def _join(self, parts: Sequence[Any]) -> Any:
        """Return the outputs of several passes as one."""
        return np.concatenate(parts)

    def _allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return zeroed float32 memory for the input."""
        return np.zeros(shape, np.float32)

    def warm_up(self, batch: int = 1) -> float:
        """
        Run blank frames until buffers and kernels are set up; return ms of the last pass.

        batch: frames in one pass. The last passes are those of frames without queries.
        """
        blank = Frame(np.full((self.input.height, self.input.width, 3), 128, np.uint8))
        features = {key: bool(self.bundle.outputs.get(key))
                    for key in ('pixel_features', 'text_features')}
        # One that is stretched, so that this is compiled now and not while a camera waits.
        larger = Frame(np.full((self.input.height + 1, self.input.width + 1, 3), 128, np.uint8))
        self.infer([larger] * batch, **features)
        for _ in range(_WARM_UP_PASSES):
            output = self.infer([blank] * batch, region_embeddings=False)
        return output.preprocess_ms + output.network_ms

    @property
    def _columns(self) -> int:
        """Return the columns of class_logits: the classes, perhaps outliers, and no-object."""
        return self.bundle.num_classes + self.bundle.outlier_class + 1

    def _refuse(self, problem: str) -> None:
        raise EngineError(f'{self.bundle.network}: {problem}; network and manifest do not belong '
                          'together: export the bundle again (owseg-train export)')

    def _pack(self, frames: Sequence[Frame], size: int) -> np.ndarray:
        if len(self._buffer) < size:
            self._buffer = self._allocate((size, *self._buffer.shape[1:]))
        pack(frames, self.input, self._buffer[:len(frames)], self._tables,
             self._scratch)
        return self._buffer[:size]

    def _check(self, found: dict[str, Any], count: int) -> None:
        masks, logits = found['mask_logits'], found['class_logits']
        if len(masks) != count or logits.shape != (*masks.shape[:2], self._columns):
            self._refuse(f'{count} frames and {self.bundle.num_classes} classes do not fit '
                         f'mask_logits {masks.shape} and class_logits {logits.shape}')
        for key in EMBEDDING_AXES.keys() & found.keys():
            shape, dim = found[key].shape, self.bundle.language.dim
            wanted = (count, dim, *shape[2:]) if key == 'text_features' else (
                *masks.shape[:2], dim)
            if shape != wanted:
                self._refuse(f'{key} must be {list(wanted)} and is {list(shape)}')
        for key, array in found.items():
            if key != 'pixel_features':
                check_finite(key, array, self.bundle, self.description)


def check_finite(key: str, array: Any, bundle: Bundle, ran_on: str) -> None:
    """
    Raise EngineError where values of an output of the network are not finite.

    Engines call it on each output but pixel_features, which are more than all others together
    and which no map of classes, anomalies or queries is made of: those that overflow are noticed
    by who looks at them, to compare regions with taught classes or to hand them out.

    key: its name in the manifest; array: an array, or a tensor on a device; ran_on: the
    description of the engine.
    """
    if not is_finite(array):
        raise EngineError(
            f'{bundle.name}: the network produced non-finite values in {key} on '
            f'{ran_on}; rebuild the engine and check its precision (FP16 '
            'overflows where FP32 does not), or use the engine onnx with '
            "providers ['cpu']")


def is_finite(array: Any) -> bool:
    """Return whether all values of an array, or of a tensor on a device, are finite."""
    if not isinstance(array, np.ndarray):
        return bool(array.isfinite().all())
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        return bool(np.isfinite(array).all())
    return _all_finite(array.reshape(-1).view(np.int32))


@compiled(types.boolean(array_types(types.int32, readonly=True)[0]))
def _all_finite(bits):
    """Return whether the float32 of these bits are finite, at the speed of memory."""
    found = np.int32(0)
    for index in range(len(bits)):
        # What is not finite has all bits of the exponent.
        found |= np.int32((bits[index] & np.int32(0x7f800000)) == np.int32(0x7f800000))
    return found == 0
