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
import os
from pathlib import Path
from statistics import median
import subprocess
import sys

from owseg_training import distributed
from owseg_training.closed_set import ClosedSetTraining
from owseg_training.config import ConfigError
import pytest
from support.camvid import tiny_config, write_camvid
import torch

RUN = """
import sys

from owseg_training import distributed
from owseg_training.closed_set import ClosedSetTraining
from support.camvid import tiny_config
import torch

torch.set_num_threads(1)
config = tiny_config(sys.argv[1], 6)
config.optimizer.batch_size = 4
training = ClosedSetTraining(config, sys.argv[2], 'cpu')
assert training.processes.size == 2
training.run(log_every=1)
distributed.leave()
"""


def read_totals(folder):
    entries = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    return {e['step']: e['total'] for e in entries if 'total' in e}, entries[-1]


def train_here(root, folder, accumulate=1):
    config = tiny_config(root, 6)
    config.optimizer.batch_size = 4
    config.optimizer.accumulate = accumulate
    ClosedSetTraining(config, folder, 'cpu').run(log_every=1)
    return read_totals(folder)


def same_curve(one, other):
    assert list(one) == list(other) == list(range(1, 7))
    apart = [abs(one[step] - other[step]) / one[step] for step in one]
    # Rounding can put a cell of a mask on the other side of one half, where attention is cut.
    assert median(apart) <= 1e-6 and max(apart) <= 2e-3


@pytest.mark.timeout(600)
def test_two_processes_and_accumulation_follow_the_curve_of_one(tmp_path):
    root = write_camvid(tmp_path)
    expected, last = train_here(root, tmp_path / 'one')
    assert expected[6] != pytest.approx(expected[1], rel=1e-3)
    same_curve(expected, train_here(root, tmp_path / 'parts', accumulate=2)[0])
    script = tmp_path / 'run.py'
    script.write_text(RUN)
    test = Path(__file__).resolve().parents[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--local-addr',
               'localhost', '--nproc-per-node', '2', str(script), str(root),
               str(tmp_path / 'two')]
    done = subprocess.run(command, env=_environment(test), capture_output=True, text=True,
                          timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    actual, last_of_two = read_totals(tmp_path / 'two')
    same_curve(expected, actual)
    # The frames of validation are shared, and each is counted once.
    assert last_of_two['mIoU'] == pytest.approx(last['mIoU'], abs=0.01)
    assert (tmp_path / 'two' / 'report.md').is_file()


def _environment(test: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(test), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    config = tiny_config(write_camvid(tmp_path))
    config.optimizer.accumulate = 3
    with pytest.raises(ConfigError, match='does not divide'):
        ClosedSetTraining(config, tmp_path / 'run', 'cpu')


def test_one_process_adds_nothing_up(monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    processes = distributed.join('cpu')
    assert processes.first and processes.size == 1 and processes.agree(7)
    sums = processes.add_up({'b': torch.tensor(2), 'a': torch.tensor(0.5)})
    assert {name: value.item() for name, value in sums.items()} == {'a': 0.5, 'b': 2.0}
    distributed.leave()
