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
"""How far one way of computing a network is from another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

TOLERANCE = 1e-4
# A sum in float32 rounds by some 2e-6 of its largest terms, however small it is itself, so that
# numbers are compared with no less than this part of the largest one.
_PART = 1 / 50


def difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """
    Return the largest |a - b| / max(1, |a|, max |a| / 50) of two arrays of one shape.

    nan or infinite where a number of either is not finite.
    """
    sizes = np.abs(expected)
    sizes = np.maximum(sizes, max(1, _PART * sizes.max()))
    return float((np.abs(expected - actual) / sizes).max())


def differences(names: Sequence[str],
                outputs: Iterable[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
                ) -> dict[str, float]:
    """
    Return the largest difference of each output, see difference.

    names: of the outputs; outputs: of each batch the expected arrays and the actual ones, in the
    order of the names.
    """
    worst = dict.fromkeys(names, 0.0)
    for expected, actual in outputs:
        for name, a, b in zip(names, expected, actual):
            # max() would pass over what is not a number.
            worst[name] = float(np.maximum(worst[name], difference(a, b)))
    return worst


def differs(found: Mapping[str, float], allowed: float = TOLERANCE) -> bool:
    """Return whether a difference is more than what is allowed, or not a number."""
    return not all(value <= allowed for value in found.values())
