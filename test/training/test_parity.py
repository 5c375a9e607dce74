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

import math

import numpy as np
from owseg_training.parity import difference, differences, differs
import pytest


def test_the_largest_relative_difference_counts():
    assert difference(np.array([0.5, -20.0]), np.array([0.4, -21.0])) == pytest.approx(0.1)
    found = differences(['a', 'b'], [
        ([np.zeros(2), np.full(2, 10.0)], [np.array([0, 3e-5]), np.full(2, 10.0)]),
        ([np.zeros(2), np.full(2, 10.0)], [np.array([0, 1e-5]), np.full(2, 10.5)])])
    assert found == {'a': pytest.approx(3e-5), 'b': pytest.approx(0.05)}
    assert differs(found) and not differs({**found, 'b': 1e-4}) and not differs({})


def test_rounding_of_large_numbers_is_no_difference():
    """As in the masks of a network that is certain of them: small sums of large terms."""
    random = np.random.default_rng(0)
    rows, columns = (random.normal(0, scale, (256, 256)) for scale in (1, 20))
    exact, single = rows @ columns, rows.astype(np.float32) @ columns.astype(np.float32)
    assert np.abs(exact).max() > 1000
    assert 0 < difference(exact, single) < 5e-5
    # What is more than rounding is seen, also in a number near 0.
    index = np.unravel_index(np.abs(exact).argmin(), exact.shape)
    single[index] += 1e-5 * np.abs(exact).max()
    assert difference(exact, single) > 1e-4


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('first', [True, False])
def test_what_is_not_finite_equals_nothing(bad, first):
    """An export that overflows must not pass as one without a difference."""
    whole, broken = np.zeros(3), np.array([0, bad, 0])
    batches = [([whole, whole], [broken, whole]), ([whole, whole], [whole, whole])]
    found = differences(['a', 'b'], batches if first else batches[::-1])
    assert not found['a'] <= 1e30 and found['b'] == 0
    assert differs(found) and differs(dict(reversed(found.items())))
    assert math.isnan(difference(broken, broken))
