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

import numpy as np
from owseg_ros.novelty import MetricHead as RuntimeHead
from owseg_ros.segmenter import FEATURES, Segmenter
from owseg_training.bundle_regions import embed_labels, embed_masks
from owseg_training.class_regions import ClassRegions
from owseg_training.cli import main
from owseg_training.closed_set import ClosedSetTraining, load_network
from owseg_training.data.datasets import DataError, open_data_set
from owseg_training.metric import MetricTraining
from owseg_training.network.metric_head import MetricHead
from owseg_training.novelty import (
    choose_threshold, export_metric_head, head_parity, taught_cosines)
import pytest
from support.camvid import tiny_config, write_camvid
from support.tiny_bundle import color_embedding, make_tiny_bundle
import torch


def regions(rows, classes):
    rows = np.array(rows, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    count = np.arange(len(rows))
    return ClassRegions(rows, np.array(classes), count, count)


def test_classes_are_taught_from_half_of_their_regions():
    found = taught_cosines(regions([[1, 0], [3, 4], [0, 1], [0, 1], [1, 0]], [0, 0, 1, 1, 2]))
    assert len(found) == 2  # The third has a single region.
    # The prototype of 0 is its first region.
    assert np.allclose(found[0][0], [0.6]) and np.allclose(found[0][1], [0, 0, 1])
    assert np.allclose(found[1][0], [1]) and np.allclose(found[1][1], [0, 0.8, 0])
    many = taught_cosines(regions([[1, 0]] * 12 + [[0, 1]] * 2, [0] * 12 + [1] * 2), shots=5)
    assert [len(own) for own, _ in many] == [7, 1]


def test_the_threshold_parts_own_regions_from_others():
    close = [[1, 0.2], [1, -0.2], [1, 0.1], [1, 0]]
    far = [[0.5, 1], [0.3, 1], [0.4, 1], [0.35, 1]]
    threshold, point = choose_threshold(regions(close + far, [0] * 4 + [1] * 4), 'the test')
    cosines = taught_cosines(regions(close + far, [0] * 4 + [1] * 4))
    own = min(values.min() for values, _ in cosines)
    other = max(values.max() for _, values in cosines)
    assert other < threshold <= own
    # As high as the own regions allow: what was never seen is nearer than other known classes.
    assert own - threshold < 0.01
    assert '1.000 of their other regions match, 0.000 of those of other' in point
    assert 'of the test' in point
    assert choose_threshold(regions([[1, 0], [1, 0]], [0, 0]), 'one class') is None


def test_the_head_in_onnx_is_the_head_in_torch(tmp_path):
    torch.manual_seed(0)
    head, path = MetricHead(6, 9, 3), tmp_path / 'head.onnx'
    export_metric_head(head, path, 18)
    assert b'metric_head.py' not in path.read_bytes()
    for count in (1, 2, 5):
        means = np.random.default_rng(count).normal(0, 3, (count, 6)).astype(np.float32)
        assert head_parity(head, path, means) < 1e-6
    with torch.no_grad():
        head.layers[2].bias += 1
    assert head_parity(head, path, means) > 1e-2


def test_masks_are_embedded_by_the_mean_of_the_features_under_them(tmp_path):
    segmenter = Segmenter(make_tiny_bundle(tmp_path / 'bundle', novelty=True))
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48], image[:, 48:] = (255, 0, 0), (0, 0, 255)
    left, both = np.zeros((64, 96), bool), np.zeros((64, 96), bool)
    left[8:40, 8:32] = True
    both[8:24, 8:24] = both[8:24, 72:88] = True
    found = embed_masks(segmenter, image, [left, both])
    assert np.allclose(found[0], color_embedding('red'), atol=1e-3)
    features = segmenter(image, maps={FEATURES}).pixel_features
    mean = (features[:, 4, 4] + features[:, 4, 20]) / 2
    assert np.allclose(found[1], segmenter.metric_head.embed(mean[None])[0], atol=1e-3)


def test_labels_are_embedded_class_by_class(tmp_path):
    segmenter = Segmenter(make_tiny_bundle(tmp_path / 'bundle', novelty=True))
    data_set = open_data_set('camvid', 'val', write_camvid(tmp_path))
    found = embed_labels(segmenter, data_set)
    label = data_set.read(data_set.items[2])[1]
    here = found.frames == 2
    assert found.classes[here].tolist() == sorted(np.unique(label))
    assert found.areas[here].tolist() == [int((label == i).sum()) for i in np.unique(label)]
    image, label = data_set.read(data_set.items[2])
    assert np.allclose(found.rows[here], embed_masks(
        segmenter, image, [label == i for i in np.unique(label)]), atol=1e-6)
    some = embed_labels(segmenter, data_set, ['b'], frames=2)
    assert set(some.classes) == {1} and set(some.frames) <= {0, 5}
    assert not len(embed_labels(segmenter, data_set, min_area=10 ** 6).rows)
    with pytest.raises(DataError, match='has no class dog; it has a, b, c'):
        embed_labels(segmenter, data_set, ['dog'])


@pytest.fixture(scope='module')
def metric_run(tmp_path_factory):
    """Return a data folder and a run with a metric head beside it."""
    folder = tmp_path_factory.mktemp('novelty')
    root = write_camvid(folder, 3)
    start = ClosedSetTraining(tiny_config(root, 1), folder / 'start', 'cpu')
    start.save()
    config = tiny_config(root, 1)
    config.metric.dim = 16
    MetricTraining(config, folder / 'run', folder / 'start', 'cpu').run(report=False)
    return root


@pytest.mark.timeout(300)
def test_a_metric_head_becomes_a_bundle_that_can_be_taught(metric_run, tmp_path, capsys):
    out = tmp_path / 'bundle'
    command = ['export', str(metric_run / 'run'), '--out', str(out), '--data', str(metric_run)]
    assert main(command) == 0
    segmenter = Segmenter(out)
    info = segmenter.bundle.novelty
    assert info.dim == 16 and 'of 3 frames of CamVid val: ' in info.operating_point
    head = RuntimeHead(segmenter.bundle)
    network = load_network(metric_run / 'run')[0]
    means = np.random.default_rng(0).normal(0, 1, (3, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = network.metric_head(torch.from_numpy(means)).numpy()
    assert np.allclose(head.embed(means), expected, atol=1e-5)
    with np.load(metric_run / 'run' / 'known_prototypes.npz') as file:
        assert np.allclose(head.known, file['embeddings'], atol=1e-6)
    data_set = open_data_set('camvid', 'val', metric_run)
    chosen = choose_threshold(embed_labels(segmenter, data_set), '3 frames of CamVid val')
    assert (info.threshold, info.operating_point) == chosen
    assert 'owseg-train metric' in (out / 'MODEL_CARD.md').read_text()

    (metric_run / 'run' / 'known_prototypes.npz').rename(tmp_path / 'known_prototypes.npz')
    assert main([*command[:2], '--out', str(tmp_path / 'no'), '--data', str(metric_run)]) == 2
    assert 'start the same owseg-train metric again' in capsys.readouterr().err
    (tmp_path / 'known_prototypes.npz').rename(metric_run / 'run' / 'known_prototypes.npz')
