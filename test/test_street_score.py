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
"""Maps of the procedural street against its truth."""

import numpy as np
from owseg_ros.scene import CLASS_NAMES, HAZARD, HAZARD_KINDS, StreetScene, VOID
from owseg_ros.street_score import describe_street, StreetScore
import pytest


@pytest.fixture(scope='module')
def frame():
    scene = StreetScene(160, 120, fps=10.0)
    frame = scene.render(scene.hazard_times(1)[0].last_index)
    assert frame.hazards
    return frame


def test_truth_itself_is_right_everywhere(frame):
    score = StreetScore(CLASS_NAMES)
    score.add(frame, frame.labels, np.where(frame.anomaly, 255, 0).astype(np.uint8))
    figures = score.figures()
    kind = frame.hazards[0].kind
    assert kind in HAZARD_KINDS
    assert figures['pixel_accuracy'] == figures['mIoU'] == 1.0
    assert {*figures['IoU']} == {CLASS_NAMES[k] for k in np.unique(frame.labels) if k < 11}
    assert figures['hazards'] == {kind: {'frames': 1, 'best_cover': 1.0, 'mean_cover': 1.0}}
    assert figures['flagged_share_of_known_pixels'] == 0.0


def test_counts_over_frames_as_a_plain_count_does(frame):
    rng = np.random.default_rng(0)
    score = StreetScore(CLASS_NAMES)
    labels, said, flags = [], [], []
    for share in (0.1, 0.5):
        semantic = np.where(rng.random(frame.labels.shape) < share,
                            rng.choice([*range(13), HAZARD, VOID], frame.labels.shape),
                            frame.labels).astype(np.uint8)
        mask = np.where(rng.random(frame.labels.shape) < share, 255, 0).astype(np.uint8)
        score.add(frame, semantic, mask)
        labels += frame.labels.ravel().tolist()
        said += semantic.ravel().tolist()
        flags += mask.ravel().tolist()
    both = [pair for pair in zip(labels, said) if pair[0] < 11]
    figures = score.figures()
    valid = [a == b for a, b in both if b < 11]
    assert figures['pixel_accuracy'] == pytest.approx(sum(valid) / len(valid))
    for k, name in enumerate(CLASS_NAMES):
        union = sum(k in pair for pair in both)
        if union:
            assert figures['IoU'][name] == pytest.approx(both.count((k, k)) / union)
    hazard, = figures['hazards'].values()
    first, second = np.split(np.array(flags)[np.array(labels) == HAZARD] > 0, 2)
    assert hazard['best_cover'] == pytest.approx(second.mean())
    assert hazard['mean_cover'] == pytest.approx((first.mean() + second.mean()) / 2)
    assert figures['flagged_share_of_known_pixels'] == pytest.approx(
        np.mean(np.array(flags)[np.array(labels) < 11] > 0))


def test_ids_of_another_order_are_compared_by_name(frame):
    names = CLASS_NAMES[::-1]
    semantic = np.where(frame.labels < 11, 10 - frame.labels, frame.labels).astype(np.uint8)
    score = StreetScore(names)
    score.add(frame, semantic, np.zeros_like(semantic))
    assert score.figures()['mIoU'] == 1.0


def test_other_classes_are_not_compared_but_hazards_are(frame):
    score = StreetScore(['road', 'car'])
    score.add(frame, np.zeros_like(frame.labels), np.full_like(frame.labels, 255))
    figures = score.figures()
    assert figures['pixel_accuracy'] is figures['mIoU'] is figures['IoU'] is None
    assert figures['flagged_share_of_known_pixels'] == 1.0
    rows = describe_street(figures)
    assert rows[0] == ('against the truth of the street', '100.0% of known pixels flagged')
    assert rows[1] == (f'hazard: {frame.hazards[0].kind}',
                       '100% of it flagged at best, 100% on average over 1 frames')


def test_nothing_seen_is_not_described():
    figures = StreetScore(CLASS_NAMES).figures()
    assert figures['frames'] == 0 and figures['mIoU'] is None
    assert describe_street(figures) == []
