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
"""Teaching while frames go on: messages, files and changes, from several threads."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
from owseg_ros.novelty import live as live_module
from owseg_ros.novelty import (
    LiveTeaching, MetricHead, PrototypeBook, TeachableFrame, TeachingSetup)
from owseg_ros.novelty.frames import mask_bits
import pytest
from support.tiny_bundle import color_embedding, make_tiny_bundle

CELLS = (8, 12)
SIZE = (32, 48)
YELLOW, CYAN = (1, 1, 0), (0, 1, 1)


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp('tiny') / 'bundle', novelty=True)


@pytest.fixture(scope='module')
def head(bundle):
    return MetricHead(bundle)


def scene(left=YELLOW, right=CYAN):
    """Return a frame of two halves, each a mask of its own."""
    features = np.zeros((4, *CELLS), np.float32)
    logits = np.full((2, *CELLS), -1.0, np.float32)
    for index, (color, half) in enumerate(((left, np.s_[:, :6]), (right, np.s_[:, 6:]))):
        features[:3, :][(slice(None), *half)] = np.array(color)[:, None, None]
        logits[index][half] = 1.0
    features[3] = features[:3].mean(axis=0)
    return TeachableFrame.of(
        SIZE, np.zeros(SIZE, np.uint8), np.ones(2, np.float32), mask_bits(logits), features)


class Teaching:
    """A LiveTeaching that runs, and what it told."""

    def __init__(self):
        self.answers, self.sets, self.failures = [], [], []
        self.gate = threading.Event()
        self.gate.set()
        self.live = LiveTeaching(
            self._answered, lambda: self.sets.append(self.live.prepared), self.failures.append)
        self.live.start()

    def _answered(self, answer):
        self.gate.wait(20)
        self.answers.append(answer.to_dict())

    def say(self, **message):
        """Say something and return the answer."""
        given = f'{time.monotonic()}'
        self.live.say(json.dumps({**message, 'message_id': given}))
        return self.until(lambda: next((answer for answer in list(self.answers)
                                        if answer['message_id'] == given), None))

    def file(self, act):  # noqa: A003
        """Save or load, and return what became of it."""
        done = []
        act(lambda *outcome: done.append(outcome))
        return self.until(lambda: done)[0]

    def until(self, predicate):
        """Wait for something to be true and return it."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = predicate()
            if found:
                return found
            time.sleep(0.002)
        raise AssertionError(self.answers[-3:])


@pytest.fixture
def teaching():
    found = Teaching()
    yield found
    found.gate.set()
    found.live.stop()
    assert found.failures == []


@pytest.fixture
def ready(teaching, bundle, head, tmp_path):
    """Return a teaching that can be taught from a frame."""
    teaching.live.configure(TeachingSetup(bundle, head, str(tmp_path / 'p.npz')))
    teaching.live.frames.limit(1 << 20)
    teaching.live.frames.add('', 10 ** 9, scene())
    return teaching


def test_each_message_counts_and_is_answered(ready):
    answer = ready.say(name='Pallet', pixel=[3, 3], threshold=0.7)
    assert answer['accepted'] == ['pallet'] and answer['classes'][0]['threshold'] == 0.7
    shot = answer['shot']
    assert (shot['kind'], shot['box'], shot['area']) == ('mask', [0, 0, 24, 32], 24 * 32)
    assert shot['stamp'] == {'sec': 1, 'nanosec': 0} and 'no anomaly here' in shot['warning']
    assert shot['similar'] in ('red', 'green') and shot['cosine'] < 0.2
    np.testing.assert_allclose(
        ready.live.prepared.prototypes.prototypes, [color_embedding('yellow')], atol=1e-5)
    assert ready.sets[-1] is ready.live.prepared
    # A class that looks like another one.
    answer = ready.say(name='plank', pixel=[3, 3])
    assert (answer['shot']['similar'], answer['shot']['cosine']) == ('pallet', 1.0)
    assert 'looks like pallet' in answer['shot']['warning']
    answer = ready.say(name='nothing', pixel=[99, 3])
    assert answer['rejected'][0]['entry'] == 'nothing' and not answer['accepted']
    assert [entry['name'] for entry in answer['classes']] == ['pallet', 'plank']
    assert answer['error'] == answer['rejected'][0]['reason']
    assert ready.say(list=True)['error'] == ''
    state = ready.live.state
    assert (state.messages, state.answered, state.dropped) == (4, 4, 0)
    assert (state.classes, state.shots, state.unsaved) == (('pallet', 'plank'), 2, True)


def test_a_known_class_that_is_taught_is_warned_of(ready):
    ready.live.frames.add('', 2 * 10 ** 9, scene(left=(1, 0, 0)))
    shot = ready.say(name='lava', pixel=[3, 3])['shot']
    assert shot['similar'] == 'red' and 'looks like red' in shot['warning']


def test_changes_make_the_live_set_anew(ready, bundle):
    ready.say(name='a', pixel=[3, 3])
    first = ready.live.prepared
    ready.live.adjust(threshold=0.25)
    assert ready.live.prepared.thresholds.tolist() == [0.25]
    assert ready.live.prepared.prototypes is first.prototypes
    ready.live.adjust(all_masks=True)
    assert ready.live.prepared.all_masks and ready.answers[-1]['classes'][0]['threshold'] == 0.25
    count = len(ready.sets)
    ready.live.adjust(all_masks=True)
    ready.say(list=True)
    assert len(ready.sets) == count
    ready.live.release()
    assert ready.live.prepared is None and ready.live.frames.stamps() == {}
    assert 'configure the node' in ready.say(list=True)['rejected'][0]['reason']


def test_saved_loaded_and_unsaved(ready, bundle, tmp_path):
    path = tmp_path / 'p.npz'
    assert 'is not there' in ready.answers[-1]['file_error'] and not ready.answers[-1]['unsaved']
    ready.say(name='a', pixel=[3, 3])
    assert ready.file(ready.live.save) == (True, f'1 class (a) of 1 shot saved to {path}')
    assert ready.answers[-1]['file_error'] == '' and not ready.answers[-1]['unsaved']
    assert ready.say(name='b', pixel=[40, 3])['unsaved']
    success, text = ready.file(ready.live.reload)
    assert success and '1 class (a) of 1 shot loaded' in text
    assert ready.live.state.classes == ('a',) and not ready.live.state.unsaved
    path.write_bytes(b'broken')
    success, text = ready.file(ready.live.reload)
    assert not success and 'no npz file' in text
    assert ready.live.state.classes == ('a',) and ready.live.state.file_error == text
    success, text = ready.file(ready.live.save)
    assert not success and 'is not overwritten' in text and path.read_bytes() == b'broken'
    path.unlink()
    assert ready.file(ready.live.save)[0] and ready.live.state.file_error == ''


def test_another_file_is_used_at_once(ready, bundle, tmp_path):
    other = tmp_path / 'other.npz'
    book = PrototypeBook(bundle)
    book.add_shot('drum', color_embedding('cyan'))
    book.save(other)
    assert ready.live.problem(str(other)) == '' == ready.live.problem('')
    assert 'cannot be read' in ready.live.problem(str(tmp_path / 'none.npz'))
    ready.live.use(str(other))
    assert ready.live.state.classes == ('drum',) and ready.live.state.path == str(other)
    ready.live.use('')
    assert ready.live.state.classes == ('drum',) and ready.live.state.unsaved
    # A file that has gone bad since it was looked at.
    ready.live.use(str(tmp_path))
    assert 'cannot be read' in ready.live.state.file_error
    assert ready.live.state.classes == ('drum',)


def test_more_than_fit_are_left_out_and_told(ready, monkeypatch):
    monkeypatch.setattr(live_module, 'PAUSE_SECONDS', 0.01)
    ready.gate.clear()
    for number in range(500):
        ready.live.say(json.dumps({'name': f'class {number}', 'pixel': [3, 3]}))
    ready.gate.set()
    ready.until(lambda: (lambda state: state.answered + state.dropped == 500)(ready.live.state))
    told = [answer['rejected'][0]['reason'] for answer in ready.answers
            if answer['rejected'] and not answer['rejected'][0]['entry']]
    assert sum(int(reason.split()[0]) for reason in told) == ready.live.state.dropped >= 466
    assert len(ready.live.state.classes) == ready.live.state.answered
    # The first ones were taken, in their order.
    assert ready.live.state.classes[:10] == tuple(f'class {number}' for number in range(10))
    assert ready.say(list=True)['error'] == ''


def test_what_waits_does_not_grow_with_the_messages(ready):
    ready.gate.clear()
    ready.live.say('{"list": true}')
    for _ in range(40):
        ready.live.say('x' * 10_000_000)
    held = sum(len(argument) for _, argument in list(ready.live._jobs))
    assert held < 1 << 20
    ready.gate.set()
    ready.until(lambda: ready.live.state.answered + ready.live.state.dropped == 41)


def test_threads_do_not_lose_shots(ready):
    def talk(name):
        for _ in range(10):
            ready.say(name=name, pixel=[3, 3])

    threads = [threading.Thread(target=talk, args=(name,)) for name in ('a', 'b')]
    for thread in threads:
        thread.start()
    for _ in range(20):
        ready.live.frames.add('', time.monotonic_ns(), scene())
        ready.live.adjust(threshold=0.5)
    for thread in threads:
        thread.join()
    assert [entry['shots'] for entry in ready.answers[-1]['classes']] == [10, 10]
    versions = [answer['version'] for answer in ready.answers]
    assert versions == sorted(versions)


def test_after_the_end_nothing_is_told(ready):
    ready.live.stop()
    count = len(ready.answers)
    ready.live.release()
    assert len(ready.answers) == count


def test_no_metric_head(teaching, tmp_path):
    plain = make_tiny_bundle(tmp_path / 'plain')
    teaching.live.configure(TeachingSetup(plain, None, str(tmp_path / 'p.npz')))
    answer = teaching.say(name='a', pixel=[3, 3])
    assert answer['state'] == 'unavailable' and 'no metric head' in answer['error']
    assert 'no metric head' in teaching.live.problem('any.npz')
    teaching.live.use('any.npz')
    teaching.live.adjust(threshold=0.5)
    assert 'no metric head' in teaching.live.state.error
    success, text = teaching.file(teaching.live.save)
    assert not success and 'no metric head' in text


CHILD = """
import json, resource, signal, sys
sys.path.insert(0, {tests!r})
from owseg_ros.bundle import load_bundle
from owseg_ros.novelty import LiveTeaching, MetricHead, TeachingSetup
from novelty.test_live_teaching import scene
bundle = load_bundle({bundle!r})
live = LiveTeaching(lambda answer: None)
live.configure(TeachingSetup(bundle, MetricHead(bundle), {path!r}))
live.frames.limit(1 << 20)
live.frames.add('', 1, scene())
{setup}
def teach(count):
    live.start()
    for _ in range(count):
        live._take(json.dumps({{'name': 'pallet', 'pixel': [3, 3]}}))
"""


def child(bundle, path, body, setup=''):
    """Return the command of a process that teaches and then does something."""
    tests = os.path.dirname(os.path.dirname(__file__))
    return [sys.executable, '-c', CHILD.format(
        tests=tests, bundle=str(bundle.path), path=str(path), setup=setup) + body]


def test_a_full_disk_is_told_and_the_old_file_stays(ready, bundle, tmp_path):
    path = tmp_path / 'p.npz'
    ready.say(name='old', pixel=[3, 3])
    assert ready.file(ready.live.save)[0]
    kept = path.read_bytes()
    found = subprocess.run(child(bundle, path, """
teach(200)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
import threading
done = threading.Event()
live.save(lambda success, text: (print(success, text), done.set()))
done.wait(20)
print(live.state.classes, live.state.shots, live.state.unsaved)
"""), capture_output=True, text=True)
    first, second = found.stdout.splitlines()
    assert first.startswith('False') and 'cannot be written' in first, found.stderr
    assert second == "('old', 'pallet') 201 True"
    assert path.read_bytes() == kept and sorted(os.listdir(tmp_path)) == ['p.npz']


def test_a_kill_in_the_midst_of_saves_leaves_a_file_that_loads(bundle, tmp_path):
    path = tmp_path / 'p.npz'
    process = subprocess.Popen(child(bundle, path, """
teach(100)
while True:
    live._do_save(lambda success, text: print(success, flush=True))
"""), stdout=subprocess.PIPE)
    for _ in range(5):
        assert process.stdout.readline() == b'True\n'
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    loaded = PrototypeBook(bundle).load(path)
    assert loaded.names == ('pallet',) and len(loaded.classes[0].shots) == 100
