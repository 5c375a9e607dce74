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
import json

import numpy as np
from owseg_training import cli
from owseg_training.analysis.pooling import (
    BINS, fitting_size, pool_frame, Pooled, regions_of, summary, told)
from owseg_training.network.backbone import build_backbone
from owseg_training.network.frozen_clip import FC_CLIP, SOFT
import pytest
from support.camvid import write_camvid
import torch


def test_regions_are_connected_components():
    label = np.zeros((64, 96), np.uint8)
    label[0:6, 0:6] = 1  # 36 pixels, and one of 25 that touches it by a corner.
    label[6:11, 6:11] = 1
    label[40:60, 40:60] = 1
    label[0:3, 90:93] = 1  # Under 16.
    label[20:30, 80:90] = 2
    label[60:, :] = 255
    ids, areas, masks = regions_of(label, [1, 2], (32, 64))
    assert ids.tolist() == [1, 1, 2] and areas.tolist() == [61, 400, 100]
    assert masks.shape == (3, 32, 64) and masks.dtype == np.float32
    shares = masks.sum((1, 2)) * (64 * 96) / (32 * 64)
    np.testing.assert_allclose(shares, areas, rtol=1e-5)
    assert fitting_size(360, 480) == (352, 480)


class Position(torch.nn.Module):
    """A backbone whose features at stride 32 are the cells, one hot."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        height, width = (side // 32 for side in image.shape[-2:])
        return {32: torch.eye(height * width).unflatten(1, (height, width))[None]}


def test_what_is_pooled_is_counted():
    masks = np.zeros((3, 64, 96), np.float32)
    masks[0, 0:16, 0:32] = 1  # Half of the first cell.
    masks[1, 0:32, 16:64] = 1  # Half of the first one, the second one.
    masks[2, 40:44, 8:12] = 1  # 16 pixels of the fourth one, beside its middle.
    found = pool_frame(Position(), np.zeros((64, 96, 3), np.uint8), masks)
    inside, vectors = found[SOFT]
    np.testing.assert_allclose(inside, [0.5, (0.25 * 0.5 + 1) / 1.25, 1 / 64], rtol=1e-3)
    np.testing.assert_allclose(vectors[1, :3], [0.2, 0.8, 0], atol=1e-4)
    inside, vectors = found[FC_CLIP]
    assert np.isnan(inside[2]) and not vectors[2].any()
    assert inside[1] == pytest.approx(1) and vectors[1, 1] == pytest.approx(1)


def test_figures_count_what_vanishes_as_lost():
    pooled = Pooled(np.array([20, 99, 100, 20_000]), np.array([0, 1, 1, 0]),
                    np.array([np.nan, 0.5, 0.25, 1.0]), np.zeros((4, 2), np.float32))
    figures = summary(pooled, np.array([False, True, False, True]))
    assert list(figures) == list(BINS)
    assert figures['16 to 99'] == {'masks': 2, 'kept': 0.5, 'inside': 0.25, 'recall': 0.5}
    small = figures['under 1,000']
    assert small['masks'] == 3 and small['kept'] == pytest.approx(2 / 3)
    assert small['inside'] == pytest.approx(0.25) and small['recall'] == pytest.approx(1 / 3)
    assert figures['10,000 and more'] == {'masks': 1, 'kept': 1, 'inside': 1, 'recall': 1}
    assert 'recall' not in summary(pooled, None)['under 1,000']


def test_the_probe_tells_classes_and_not_what_vanished():
    rng = np.random.default_rng(0)
    label = np.tile([0, 1], 30)
    vectors = (rng.normal(0, 0.1, (60, 3)) + np.eye(3)[label]).astype(np.float32)
    inside = np.full(60, 0.5)
    # Small regions of the training split are not learned from.
    area = np.where(np.arange(60) < 40, 1000, 999)
    training = Pooled(area, np.where(area < 1000, 1 - label, label), inside, vectors)
    inside = inside.copy()
    inside[0] = np.nan
    right = told(training, Pooled(np.full(60, 50), label, inside, vectors))
    assert not right[0] and right[1:].mean() > 0.95
    swapped = told(training, Pooled(np.full(60, 50), 1 - label, inside, vectors))
    assert swapped.mean() < 0.05


@pytest.mark.timeout(120)
def test_the_command_writes_a_table(tmp_path, capsys):
    assert cli.main([
        'analyse', 'pooling', '--backbone', 'mobilenetv2_100_e1', '--data',
        str(write_camvid(tmp_path)), '--anomalies', 'none', '--every', '2', '--out',
        str(tmp_path / 'out')]) == 0
    assert '| under 1,000 |' in capsys.readouterr().out
    figures = json.loads((tmp_path / 'out' / 'pooling.json').read_text())
    assert figures['backbone'] == 'mobilenetv2_100_e1 with random weights'
    assert figures['camvid_val'][SOFT]['under 1,000']['kept'] == 1
    assert (tmp_path / 'out' / 'pooling.md').is_file()


def test_backbones_that_are_not_known_are_one_line(tmp_path, capsys):
    assert cli.main(['analyse', 'pooling', '--model', 'RN5', '--out', str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count('\n') == 1


def test_backbones_are_made_with_their_weights(tmp_path):
    pytest.importorskip('open_clip')
    with pytest.raises(ValueError, match='cannot be read'):
        build_backbone('open_clip', str(tmp_path / 'none.pt'), {'model': 'RN50'})
