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
"""What readouts are tested with: outputs of networks, and how maps compare with the reference."""

from hypothesis import strategies as st
import numpy as np
from owseg_ros.readout import reference
from owseg_ros.readout.cpu import SCORE_TOLERANCES
from owseg_ros.readout.maps import ReadoutSettings, RegionScores

ROUNDING = 2e-5
SETTINGS = ReadoutSettings(anomaly_threshold=0.5, min_area=6)


def network(seed, count, classes, height, width, spread):
    """Return mask logits [N, h, w] with flat parts and edges, and probabilities [N, K]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centres = random.uniform(0, 1, (count, 2, 1, 1)) * np.array([height, width]).reshape(2, 1, 1)
    radius = random.uniform(0.1, 0.6, (count, 1, 1)) * max(height, width)
    distance = radius - np.hypot(y - centres[:, 0], x - centres[:, 1])
    masks = spread * np.tanh(distance / 2) + random.normal(0, 0.1 * spread, distance.shape)
    logits = random.normal(0, 2, (count, classes + 1))
    logits[random.random(count) < 0.5, -1] += 8
    return masks.astype(np.float32), reference.class_probabilities(logits).astype(np.float32)


@st.composite
def tasks(draw):
    """Draw a network's output with network and output sizes, whole scales and odd ones."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 30))
    masks, probabilities = network(
        draw(st.integers(0, 2 ** 32 - 1)), draw(st.integers(1, 20)), draw(st.integers(1, 12)),
        height, width, draw(st.sampled_from([0.5, 6.0, 25.0])))
    if draw(st.booleans()):
        size = (height * draw(st.sampled_from([1, 2, 4])), width * draw(st.sampled_from([1, 4])))
    else:
        size = (draw(st.integers(1, 110)), draw(st.integers(1, 130)))
    output = size if draw(st.booleans()) else (
        draw(st.integers(1, 140)), draw(st.integers(1, 150)))
    return masks, probabilities, size, output


def assert_close(maps, masks, probabilities, size, output, chosen, tolerance):
    """Compare maps with the reference: scores within tolerance, labels where they are clear."""
    exact = [array.astype(np.float64) for array in (masks, probabilities)]
    scores = reference.class_scores(*exact, size, output)
    score = reference.rba(scores)
    assert maps.semantic.shape == maps.anomaly_score.shape == tuple(output)
    assert maps.anomaly_score.dtype == np.float32 and maps.semantic.dtype == np.uint8
    np.testing.assert_allclose(maps.anomaly_score, score, atol=SCORE_TOLERANCES * tolerance)
    best = np.clip(scores.max(axis=0), 0, 1)
    np.testing.assert_allclose(
        maps.confidence.astype(float), 255 * best, atol=0.5 + 255 * tolerance)
    top = np.sort(scores, axis=0)[::-1]
    clear = np.ones(output, bool) if len(top) == 1 else top[0] - top[1] > 2 * tolerance
    np.testing.assert_array_equal(
        maps.semantic[clear], reference.semantic(scores)[clear])
    mask = reference.clean_mask(
        maps.anomaly_score >= np.float32(chosen.anomaly_threshold),
        chosen.scaled_min_area(size, output))
    np.testing.assert_array_equal(maps.anomaly_mask, mask)


def query_weights(seed, count, queries):
    """Return weights [N, Q], most of them small, and thresholds [Q]."""
    random = np.random.default_rng(seed)
    weights = random.random((count, queries)) ** random.choice([1, 4, 30], (count, queries))
    return weights.astype(np.float32), random.uniform(0, 1, queries).astype(np.float32)


def quarters(scores):
    """Return a function that gives the quarters of a mask, where it is set, such scores."""
    def score_regions(mask):
        middle_y, middle_x = mask.shape[0] // 2, mask.shape[1] // 2
        windows = [np.s_[y, x] for y in (slice(0, middle_y), slice(middle_y, None))
                   for x in (slice(0, middle_x), slice(middle_x, None))]
        return [RegionScores(window, mask[window] != 0, row)
                for window, row in zip(windows, scores)]
    return score_regions
