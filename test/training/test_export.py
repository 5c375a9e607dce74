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
import cv2
import numpy as np
from owseg_ros.segmenter import Segmenter
from owseg_training.cli import main
from owseg_training.closed_set import ClosedSetTraining
from owseg_training.outliers import OutlierTraining
import pytest
from support.camvid import tiny_config, write_camvid


def write_road_anomaly(root):
    """Write two pictures with a magenta object in RoadAnomaly's layout."""
    folder = root / 'road_anomaly'
    for name in ('images', 'masks'):
        (folder / name).mkdir(parents=True)
    for index in range(2):
        image = np.full((72, 96, 3), (40, 200, 40), np.uint8)
        mask = np.zeros((72, 96), np.uint8)
        image[20:50, 30:60], mask[20:50, 30:60] = (255, 0, 255), 1
        mask[:4] = 255
        cv2.imwrite(str(folder / 'images' / f'r{index}.jpg'), image[..., ::-1])
        cv2.imwrite(str(folder / 'masks' / f'r{index}.png'), mask)


@pytest.mark.timeout(240)
def test_run_becomes_a_bundle_with_figures_and_history(tmp_path, capsys):
    root = write_camvid(tmp_path)
    write_road_anomaly(root)
    objects = root / 'objects' / 'open'
    objects.mkdir(parents=True)
    cv2.imwrite(str(objects / 'a_vase.png'), np.full((12, 12, 4), 255, np.uint8))
    ClosedSetTraining(tiny_config(root, 4), tmp_path / 'run').run()
    before = tmp_path / 'before'
    assert main(['export', str(tmp_path / 'run'), '--out', str(before), '--data', str(root)]) == 0
    assert 'flags 2% of the known pixels' in capsys.readouterr().out
    config = tiny_config(root, 2)
    config.outliers.height = [0.2, 0.4]
    OutlierTraining(config, tmp_path / 'tuned', tmp_path / 'run').run()
    after = tmp_path / 'after'
    assert main(['export', str(tmp_path / 'tuned'), '--out', str(after), '--data', str(root),
                 '--before', str(before)]) == 0

    segmenter = Segmenter(after)
    bundle = segmenter.bundle
    assert bundle.class_names == ('a', 'b', 'c')
    assert max(bundle.figures['onnx_parity'].values()) <= 1e-4
    figures = bundle.figures
    assert figures['before_outliers']['road_anomaly'] == \
        Segmenter(before).bundle.figures['road_anomaly']
    assert 0 <= figures['camvid_val']['mIoU'] <= 1
    result = segmenter(np.full((72, 96, 3), 90, np.uint8))
    assert result.semantic.shape == (72, 96)
    card = (after / 'MODEL_CARD.md').read_text()
    for text in ('before outlier supervision', 'mask_embed, class_embed', 'closed-set --config',
                 f'{figures["camvid_val"]["mIoU"]:.4f}'):
        assert text in card
    # The calibrated threshold flags two percent of what is known, within the pictures' grain.
    scores = []
    for item in sorted((root / 'camvid' / 'images').glob('*.jpg')):
        image = cv2.imread(str(item))[..., ::-1]
        scores.append(segmenter(np.ascontiguousarray(image)).anomaly_score.ravel())
    flagged = (np.concatenate(scores) >= bundle.anomaly.threshold).mean()
    assert flagged == pytest.approx(0.02, abs=0.005)


def test_missing_run_and_data_are_one_line(tmp_path, capsys):
    assert main(['export', str(tmp_path), '--out', str(tmp_path / 'b')]) == 2
    assert 'config.yaml' in capsys.readouterr().err
