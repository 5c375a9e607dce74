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
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_training.evaluate import anomaly_metrics, PooledCurve
from owseg_training.evaluate.metrics import pixel_metrics
import pytest
from sklearn.metrics import (
    average_precision_score, precision_recall_curve, roc_auc_score, roc_curve)

FIGURES = ('AP', 'AuROC', 'FPR95', 'best_f1')


def scikit_learn(scores, labels):
    keep = labels <= 1
    scores, labels = scores[keep], labels[keep]
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return {'AP': average_precision_score(labels, scores),
            'AuROC': roc_auc_score(labels, scores),
            'FPR95': fpr[np.argmax(tpr >= 0.95)], 'best_f1': f1.max()}


def stream(scores, labels, frames, **options):
    with PooledCurve(scores.dtype, **options) as curve:
        for score, label in zip(np.array_split(scores, frames), np.array_split(labels, frames)):
            curve.add(score, label)
        first = curve.result()
        assert curve.result() == first
        return first


@st.composite
def pixels(draw):
    """Draw pixels of every difficult kind: ties, saturation, both zeros, voids, all floats."""
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    count = draw(st.integers(20, 600))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    labels = rng.choice([0, 0, 0, 1, 255], count).astype(np.uint8)
    labels[:2] = 0, 1
    scores = rng.normal(size=count) + draw(st.floats(-1, 2)) * (labels == 1)
    kind = draw(st.sampled_from(['continuous', 'ties', 'saturated', 'one level', 'signed zero']))
    if kind == 'ties':
        scores = np.round(scores * 3)
    elif kind == 'saturated':
        scores = np.clip(scores, -0.5, 0.5)
    elif kind == 'one level':
        scores[:] = 0.25
    elif kind == 'signed zero':
        scores = np.where(rng.random(count) < 0.5, 0.0, -0.0) + (rng.random(count) < 0.2)
    return scores.astype(dtype), labels


@settings(max_examples=120, deadline=None)
@given(pixels(), st.integers(1, 7), st.integers(3, 50), st.integers(1, 40))
def test_streaming_agrees_with_scikit_learn(drawn, frames, run_pixels, merge_pixels):
    scores, labels = drawn
    ours = stream(scores, labels, frames, run_pixels=run_pixels, merge_pixels=merge_pixels)
    expected = scikit_learn(scores.astype(np.float64), labels)
    for name in FIGURES:
        assert ours[name] == pytest.approx(expected[name], abs=1e-9), name


@settings(max_examples=40, deadline=None)
@given(pixels())
def test_threshold_selects_the_best_f1(drawn):
    scores, labels = drawn
    ours = stream(scores, labels, 1)
    known = labels <= 1
    # Numpy would round the threshold to half precision, onto a score.
    scores = scores.astype(np.float64)
    for predicted in (scores > ours['threshold'], scores >= ours['threshold']):
        hits = np.sum(predicted & (labels == 1))
        f1 = 2 * hits / (np.sum(predicted & known) + np.sum(labels == 1))
        assert f1 == pytest.approx(ours['best_f1'], abs=1e-12)


def test_blocks_are_merged_across_many_files_in_small_steps():
    rng = np.random.default_rng(0)
    labels = (rng.random(300_000) < 0.02).astype(np.uint8)
    # Few levels make groups that span many blocks, 8192 levels make blocks of many groups.
    for levels in (3, 8192):
        scores = (rng.integers(0, levels, labels.size) + levels * 0.2 * labels).astype(np.float32)
        ours = stream(scores, labels, 20, run_pixels=20_000, merge_pixels=1)
        whole = pixel_metrics(scores, labels)
        for name, value in whole.items():
            assert ours[name] == pytest.approx(value, abs=1e-9), name


def test_frames_without_anomalies_count_as_known_pixels():
    rng = np.random.default_rng(1)
    shape = (40, 50)
    scores = [rng.normal(size=shape).astype(np.float32) for _ in range(4)]
    labels = [np.zeros(shape, np.uint8) for _ in range(4)]
    labels[2][10:20, 10:30] = 1
    labels[3][:] = 255
    scores[2][labels[2] == 1] += 1.5
    ours = anomaly_metrics(scores, labels, track='anomaly')
    expected = scikit_learn(np.stack(scores).ravel(), np.stack(labels).ravel())
    for name in FIGURES:
        assert ours[name] == pytest.approx(expected[name], abs=1e-6), name


def test_void_scores_may_be_anything():
    labels = np.array([[0, 1, 255]], np.uint8)
    ours = anomaly_metrics([np.array([[0.0, 1.0, np.nan]])], [labels], track='anomaly')
    assert ours['AP'] == ours['AuROC'] == 1.0 and ours['FPR95'] == 0.0


def test_precision_of_the_scores_is_kept():
    labels = np.array([0, 1, 0, 1], np.uint8)
    close = 1.0 + np.array([0, 1, 2, 3]) * 1e-12
    assert stream(close, labels, 1)['AuROC'] == 0.75
    with PooledCurve(np.float32) as curve:
        curve.add(close, labels)
        assert curve.result()['AuROC'] == 0.5


def test_unusable_input_is_refused():
    with PooledCurve() as curve:
        with pytest.raises(ValueError, match='differ'):
            curve.add(np.zeros((2, 2)), np.zeros((2, 3)))
        with pytest.raises(ValueError, match='finite'):
            curve.add(np.array([np.inf]), np.array([0]))
        with pytest.raises(ValueError, match='finite'):
            curve.add(np.array([1e300]), np.array([0]))  # beyond float32
        curve.add(np.array([0.5]), np.array([0]))
        with pytest.raises(ValueError, match='both known and anomalous'):
            curve.result()


def test_temporary_files_lie_where_asked_and_vanish(tmp_path):
    rng = np.random.default_rng(0)
    with PooledCurve(run_pixels=1000, folder=str(tmp_path)) as curve:
        for _ in range(10):
            labels = rng.integers(0, 2, 4000)
            curve.add(rng.normal(size=4000), labels)
        curve.result()
        assert curve.known + curve.anomalous == 40_000
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        with PooledCurve(run_pixels=10, folder=str(tmp_path / 'none')) as curve:
            curve.add(np.zeros(100), np.zeros(100))


MEMORY = """
import resource
import numpy as np
from owseg_training.evaluate import PooledCurve
rng = np.random.default_rng(0)
scores = rng.random((1024, 1024), dtype=np.float32)
labels = (rng.random((1024, 1024)) < 0.01).astype(np.uint8)
with PooledCurve(run_pixels=1 << 18, merge_pixels=1 << 16) as curve:
    for frame in range(14):
        curve.add(np.roll(scores, frame, 1) * (1 + 0.01 * frame), labels)
        if frame in (1, 13):
            curve.result()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='ru_maxrss is in KiB on Linux only')
def test_memory_does_not_grow_with_frames():
    done = subprocess.run([sys.executable, '-c', MEMORY], check=True, capture_output=True,
                          text=True)
    first, last = map(int, done.stdout.split())
    # Twelve megapixels more would be 48 MiB if they were kept.
    assert last - first < 16 * 1024
