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
from owseg_training.closed_set import ClosedSetTraining
from owseg_training.report import curves, smooth
import pytest
from support.camvid import tiny_config, write_camvid


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert smooth([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    assert smooth([10.0, 0.0], 0.5) == pytest.approx([10.0, 10 / 3])


def test_curves_are_those_that_the_log_has():
    assert curves([]) == {}
    log = [{'step': 10, 'total': 3.0, 'class': 1.0, 'outliers_0': 2.0}]
    charts = curves(log)
    assert list(charts) == ['loss']
    drawn = {line.get_label(): list(line.get_ydata()) for line in charts['loss'].axes[0].lines}
    assert drawn == {'total': [3.0], 'classes': [1.0], 'outliers': [2.0]}
    assert list(curves([*log, {'step': 10, 'mIoU': 0.5, 'frames': 25}])) == ['loss', 'mIoU']


@pytest.mark.timeout(180)
def test_a_finished_run_has_a_report_and_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / 'run'
    ClosedSetTraining(tiny_config(write_camvid(tmp_path), 2), folder, 'cpu').run(log_every=1)
    text = (folder / 'report.md').read_text()
    assert '# tiny' in text and 'mIoU (val, all frames)' in text
    assert all(f'| {name} | ' in text for name in 'abc')
    for name in ('loss', 'mIoU', 'frames'):
        assert f'({name}.png)' in text
        picture = cv2.imread(str(folder / f'{name}.png'))
        assert picture is not None and picture.std() > 5
    # Six frames below each other.
    assert picture.shape[0] > picture.shape[1]
    board = EventAccumulator(str(folder / 'tensorboard')).Reload()
    assert [event.step for event in board.Scalars('train/total')] == [1, 2]
    assert {'val/mIoU', 'IoU/a', 'train/mask'} <= set(board.Tags()['scalars'])
