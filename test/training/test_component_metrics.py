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
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_training.evaluate import (
    anomaly_metrics, closed_set_metrics, ComponentMetrics, GroundingConfusion, MaskRecall, Track)
from owseg_training.evaluate.components import frame_components, TRACKS
import pytest


def flood(mask):
    """Split a mask into 8-connected sets of (row, column)."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask))}
    parts = []
    while left:
        part, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            part.add((y, x))
            for step in [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]:
                near = (y + step[0], x + step[1])
                if near in left:
                    left.remove(near)
                    front.append(near)
        parts.append(part)
    return parts


def slow_components(predicted, label, min_prediction, min_truth):
    """Follow the definition with sets of pixels, one step after the other."""
    found = [p for p in flood(predicted & (label <= 1)) if len(p) >= min_prediction]
    truth = flood(label == 1)
    void = set().union(*(t for t in truth if len(t) < min_truth))
    truth = [t for t in truth if len(t) >= min_truth]
    found = [p - void for p in found if p - void]
    everything = set().union(*truth)
    overlap, purity = [], []
    for k in truth:
        union = set().union(*(p for p in found if p & k))
        overlap.append(len(k & union) / len(k | (union - (everything - k))))
    for p in found:
        purity.append(len(p & everything) / len(p))
    return overlap, purity


def slow_result(frames):
    """Average the components of [(overlap, purity)] as the benchmark does."""
    overlap = [v for o, _ in frames for v in o]
    purity = [v for _, p in frames for v in p]
    scores = []
    for level in np.linspace(0.25, 0.75, 11):
        hits = sum(v >= level for v in overlap)
        misses = sum(v < level for v in overlap)
        alarms = sum(v < level for v in purity)
        scores.append(2 * hits / (2 * hits + misses + alarms))
    return {'sIoU': np.mean(overlap), 'PPV': np.mean(purity) if purity else np.nan,
            'F1': np.mean(scores)}


def blobs(rng, height, width, number, size):
    """Return a mask of rectangles that touch, overlap and stand alone."""
    mask = np.zeros((height, width), bool)
    for _ in range(number):
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y:y + rng.integers(1, size), x:x + rng.integers(1, size)] = True
    return mask


def scene(seed, height=28, width=36):
    rng = np.random.default_rng(seed)
    label = blobs(rng, height, width, rng.integers(0, 7), 9).astype(np.uint8)
    label[blobs(rng, height, width, rng.integers(0, 4), 8)] = 255
    shift = np.roll(label == 1, tuple(rng.integers(-3, 4, 2)), (0, 1))
    predicted = (shift | blobs(rng, height, width, rng.integers(0, 5), 8)) ^ (
        rng.random((height, width)) < 0.02)
    return predicted, label


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2 ** 32 - 1), st.integers(0, 12), st.integers(0, 12))
def test_frame_agrees_with_the_definition_on_sets(seed, min_prediction, min_truth):
    predicted, label = scene(seed)
    ours = frame_components(predicted, label, Track(min_prediction, min_truth))
    overlap, purity = slow_components(predicted, label, min_prediction, min_truth)
    assert np.allclose(np.sort(ours.sIoU), np.sort(overlap), rtol=0, atol=1e-9)
    assert np.allclose(np.sort(ours.PPV), np.sort(purity), rtol=0, atol=1e-9)
    assert len(ours.sIoU) == len(overlap) and len(ours.PPV) == len(purity)


@pytest.mark.parametrize('track', ['anomaly', 'obstacle'])
@pytest.mark.parametrize('threshold', [None, 0.5])
def test_set_agrees_with_the_definition_on_sets(track, threshold):
    rng = np.random.default_rng(7)
    scores, labels = [], []
    for number in (3, 0, 5):  # the second frame has no anomaly
        label = blobs(rng, 90, 120, number, 45).astype(np.uint8)
        label[blobs(rng, 90, 120, 2 * number, 9)] = 1
        label[blobs(rng, 90, 120, 2, 30)] = 255
        # Smooth noise makes components of all sizes.
        noise = np.kron(rng.random((10, 12)), np.ones((9, 10)))
        scores.append((0.55 * np.roll(label == 1, 3, 1) + 0.6 * noise).astype(np.float32))
        labels.append(label)
    ours = anomaly_metrics(scores, labels, track=track, threshold=threshold)
    sizes = {'anomaly': (500, 100), 'obstacle': (50, 10)}[track]
    level = ours['threshold'] if threshold is None else threshold
    expected = slow_result([slow_components(s > level, y, *sizes)
                            for s, y in zip(scores, labels)])
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name
    assert 0.05 < ours['F1'] < 1
    assert set(ours) == {'AP', 'AuROC', 'FPR95', 'best_f1', 'threshold', 'sIoU', 'PPV', 'F1'}


def test_sizes_of_the_tracks():
    assert TRACKS == {'anomaly': Track(500, 100), 'obstacle': Track(50, 10)}
    label = np.zeros((60, 60), np.uint8)
    label[:10, :10] = 1      # 100 pixels
    label[20:29, 20:31] = 1  # 99 pixels
    predicted = np.zeros((60, 60), bool)
    predicted[:10, :50] = True     # 500 pixels, 100 of them true
    predicted[18:38, 18:42] = True  # 480 pixels
    anomaly = frame_components(predicted, label, 'anomaly')
    assert anomaly.sIoU.tolist() == [0.2] and anomaly.PPV.tolist() == [0.2]
    obstacle = frame_components(predicted, label, 'obstacle')
    assert obstacle.sIoU.tolist() == [0.2, 99 / 480]
    with pytest.raises(ValueError, match='anomaly, obstacle'):
        frame_components(predicted, label, 'night')


def test_small_ground_truth_is_taken_from_predictions_after_the_size_filter():
    label = np.zeros((30, 30), np.uint8)
    label[0:3, 0:3] = 1  # 9 pixels: void in the obstacle track
    predicted = np.zeros((30, 30), bool)
    predicted[0:5, 0:10] = True  # 50 pixels, 41 of which remain
    found = frame_components(predicted, label, 'obstacle')
    assert found.sIoU.size == 0 and found.PPV.tolist() == [0.0]
    swallowed = frame_components(label == 1, label, Track(0, 10))
    assert swallowed.PPV.size == 0  # nothing remains of it


def test_diagonal_neighbours_are_one_component():
    label = np.zeros((8, 8), np.uint8)
    label[:4, :4] = 1
    label[4:, 4:] = 1
    assert frame_components(label == 1, label, Track(0, 0)).sIoU.tolist() == [1.0]


def test_one_prediction_over_two_objects_is_not_punished_for_the_other():
    label = np.zeros((10, 21), np.uint8)
    label[:, :10] = 1
    label[:, 11:] = 1
    ours = frame_components(np.ones(label.shape, bool), label, Track(0, 0))
    assert ours.sIoU.tolist() == [100 / 110, 100 / 110]
    assert ours.PPV.tolist() == [200 / 210]


def test_a_threshold_that_is_no_number_is_refused():
    label = np.eye(40, dtype=np.uint8)
    with pytest.raises(ValueError, match='the threshold must be a number, not nan'):
        anomaly_metrics([label.astype(np.float32)], [label], track='anomaly', threshold=np.nan)


def test_threshold_given_is_exclusive_and_threshold_chosen_is_usable():
    # Scores saturate at 1, where the best F1 is: the official code would predict nothing here.
    label = np.zeros((40, 40), np.uint8)
    label[:30, :30] = 1
    for dtype in (np.float16, np.float32, np.float64):
        score = np.where(label == 1, 1.0, 0.25).astype(dtype)
        chosen = anomaly_metrics([score], [label], track='anomaly')
        assert chosen['F1'] == chosen['sIoU'] == chosen['PPV'] == chosen['best_f1'] == 1.0
        assert chosen['threshold'] == pytest.approx(1.0, rel=1e-2) and chosen['threshold'] < 1
        again = anomaly_metrics([score], [label], track='anomaly', threshold=chosen['threshold'])
        assert again == chosen
        official = anomaly_metrics([score], [label], track='anomaly', threshold=1.0)
        assert official['F1'] == 0 and np.isnan(official['PPV']) and official['threshold'] == 1.0
    mixed = anomaly_metrics([score.astype(np.float32), score], [label, label], track='anomaly')
    assert mixed['F1'] == 1.0


def test_set_without_anomalies():
    score, label = np.full((30, 30), 0.9), np.zeros((30, 30), np.uint8)
    with pytest.raises(ValueError, match='both known and anomalous'):
        anomaly_metrics([score], [label], track='anomaly')
    given_one = anomaly_metrics([score], [label], track='anomaly', threshold=0.5)
    assert np.isnan(given_one['AP']) and np.isnan(given_one['sIoU'])
    assert given_one['PPV'] == 0 and given_one['F1'] == 0  # one false alarm
    quiet = anomaly_metrics([score], [label], track='anomaly', threshold=1.5)
    assert np.isnan(quiet['PPV']) and np.isnan(quiet['F1'])


def test_input_that_does_not_fit_is_refused():
    one = np.zeros((4, 4))
    with pytest.raises(ValueError, match='2 score maps'):
        anomaly_metrics([one, one], [one], track='anomaly')
    with pytest.raises(ValueError, match='night'):
        anomaly_metrics([one], [one], track='night', threshold=0.5)
    with pytest.raises(ValueError, match='equal size'):
        ComponentMetrics(0.5, 'anomaly').add(np.zeros((4, 5)), one)


def test_closed_set_metrics_follow_cityscapes():
    label = [np.array([[0, 0, 255, 1]], np.uint8), np.array([[0]], np.int64)]
    prediction = [np.array([[0, 254, 1, 0]], np.uint8), np.array([[-1]], np.int64)]
    ours = closed_set_metrics(prediction, label, 3)
    assert ours['IoU'][:2] == [0.25, 0.0] and np.isnan(ours['IoU'][2])
    assert ours['mIoU'] == 0.125 and ours['pixel_accuracy'] == 0.25
    with pytest.raises(ValueError, match='1 labels'):
        closed_set_metrics(prediction, label[:1], 3)


def test_grounding_lets_only_present_classes_compete():
    scores = np.zeros((3, 2, 2))
    scores[2] = 9  # absent, and preferred everywhere
    scores[0, 0], scores[1, 1] = 1, 1
    label = np.array([[0, 0], [1, 255]], np.uint8)
    matrix = GroundingConfusion(3)
    matrix.add_scores(scores, label)
    assert matrix.mean_iou() == 1.0 and np.isnan(matrix.iou()[2])
    matrix.add_scores(scores, np.full((2, 2), 255, np.uint8))
    assert matrix.mean_iou() == 1.0
    with pytest.raises(ValueError, match=r'\[3, H, W\]'):
        matrix.add_scores(scores[:2], label)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2 ** 32 - 1))
def test_mask_recall_agrees_with_the_definition(seed):
    rng = np.random.default_rng(seed)
    recall, found, total = MaskRecall(4), 0, 0
    for _ in range(3):
        label = np.kron(rng.choice([0, 1, 2, 3, 255], (3, 4)), np.ones((3, 3))).astype(np.uint8)
        masks = [np.roll(label == k, rng.integers(0, 3), 1) for k in (0, 2, 3)]
        recall.add(masks, label)
        for k in np.unique(label[label < 4]):
            total += 1
            inside = [m & (label < 4) for m in masks]
            found += any(np.sum(m & (label == k)) / np.sum(m | (label == k)) >= 0.5
                         for m in inside)
    if total:
        assert recall.recall() == pytest.approx(found / total)
        assert np.nansum(recall.per_segment() * recall.segments) == pytest.approx(found)
    else:
        assert np.isnan(recall.recall())
    with pytest.raises(ValueError, match='differ'):
        recall.add([np.zeros((2, 2), bool)], label)
