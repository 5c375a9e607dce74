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
from owseg_training.evaluate.metrics import ConfusionMatrix, pixel_metrics
import pytest
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score, roc_curve


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2 ** 32 - 1), st.integers(1, 12), st.booleans())
def test_pixel_metrics_agree_with_scikit_learn(seed, levels, saturate):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 400)
    labels[:2] = 0, 1
    scores = rng.integers(0, levels, 400) + labels * rng.integers(0, 2)
    scores = np.minimum(scores, levels // 2 + 1).astype(float) if saturate else scores * 0.1
    ours = pixel_metrics(scores, labels.astype(np.uint8))
    assert ours['AP'] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    assert ours['AuROC'] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert ours['FPR95'] == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-9)


def test_void_pixels_do_not_count():
    scores = np.array([0.1, 0.9, 5.0, -5.0])
    with_void = pixel_metrics(scores, np.array([0, 1, 255, 255], np.uint8))
    assert with_void == pixel_metrics(scores[:2], np.array([0, 1], np.uint8))
    assert with_void['AP'] == 1.0


@pytest.mark.parametrize('labels', [[0, 0], [1, 1], [255, 255]])
def test_pixel_metrics_need_both_kinds(labels):
    with pytest.raises(ValueError, match='both known and anomalous'):
        pixel_metrics(np.array([0.0, 1.0]), np.array(labels, np.uint8))


def test_pixel_metrics_refuse_nan():
    with pytest.raises(ValueError, match='finite'):
        pixel_metrics(np.array([0.0, np.nan]), np.array([0, 1], np.uint8))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2 ** 32 - 1))
def test_confusion_matrix_agrees_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (9, 7)).astype(np.uint8)
    prediction = rng.integers(0, 4, (9, 7)).astype(np.uint8)
    matrix = ConfusionMatrix(4)
    for half in (slice(0, 4), slice(4, 9)):
        matrix.add(prediction[half], label[half])
    expected = jaccard_score(label.ravel(), prediction.ravel(), average=None,
                             labels=range(4), zero_division=0)
    defined = np.isfinite(matrix.iou())
    assert np.allclose(matrix.iou()[defined], expected[defined])
    assert matrix.pixel_accuracy() == pytest.approx(float((label == prediction).mean()))


def test_confusion_matrix_corner_cases():
    matrix = ConfusionMatrix(3)
    label = np.array([[0, 0, 255, 1]], np.uint8)
    matrix.add(np.array([[0, 254, 1, 0]], np.uint8), label)
    iou = matrix.iou()
    assert iou[0] == pytest.approx(1 / 3)  # one hit, one miss to an unknown id, one false alarm
    assert iou[1] == 0.0
    assert np.isnan(iou[2])
    assert matrix.mean_iou() == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match='differ'):
        matrix.add(np.zeros((2, 2), np.uint8), label)
