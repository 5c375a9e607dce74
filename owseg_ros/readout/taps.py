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
"""Between which pixels of one size the pixels of another lie: linear resampling of an axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def interpolation_taps(size_in: int, size_out: int) -> tuple[
        np.ndarray, np.ndarray, np.ndarray]:
    """
    Return between which pixels each output pixel of linear resampling lies, [size_out] each.

    First and second pixel (intp), and the share of the second (float64). Half-pixel centres
    (``align_corners=False``): output pixel i samples at (i + 0.5) * size_in / size_out - 0.5,
    clamped to the first and last pixel.
    """
    if size_in < 1 or size_out < 1:
        raise ValueError(f'sizes must be positive, not {size_in} and {size_out}')
    position = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    position = np.clip(position, 0.0, size_in - 1.0)
    low = np.floor(position).astype(np.intp)
    return low, np.minimum(low + 1, size_in - 1), position - low


@dataclass(frozen=True)
class Taps:
    """
    Between which pixels of one axis those of another lie.

    first, second: int64 [n], pixels of the one; share: float32 [n], of the second of them.
    phases: float32 [factor], where the one is stretched by a whole factor, else [0], see
    kernels._stretch_whole.
    """

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray
    phases: np.ndarray

    @classmethod
    def between(cls, size_in: int, size_out: int) -> Taps:
        """Return those of linear resampling, see interpolation_taps."""
        first, second, share = interpolation_taps(size_in, size_out)
        # No more pixels than are needed: a band of masks of L's own size has their rows only.
        second = np.where(share > 0, second, first)
        factor = 0 if size_out % size_in else size_out // size_in
        phase = np.arange(factor)
        phases = (2 * phase + 1 - factor) / (2 * max(1, factor)) + (2 * phase + 1 < factor)
        return cls(first.astype(np.int64), second.astype(np.int64), share.astype(np.float32),
                   phases.astype(np.float32))

    def part(self, start: int, stop: int, origin: int = 0) -> Taps:
        """Return those of some pixels, of an axis that begins at `origin`."""
        return Taps(self.first[start:stop] - origin, self.second[start:stop] - origin,
                    self.share[start:stop], self.phases)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return first, second and share."""
        return self.first, self.second, self.share
