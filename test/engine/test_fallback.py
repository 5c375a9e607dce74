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
"""Serving while a better engine is built: ONNX Runtime for both, and builds that fail."""

import subprocess
import sys
import threading

import numpy as np
from owseg_ros.engine import create_engine, EngineError, OnnxEngine
from owseg_ros.engine.fallback import FallbackEngine
from owseg_ros.engine.status import (
    BUILDING, BuildProgress, EngineStatus, FALLBACK, RUNNING, StateMachine, WARMING)
from owseg_ros.frame import Frame
import pytest
from support.tiny_bundle import make_tiny_bundle, paint

FRAME = Frame(paint(96, 64))


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp('bundle') / 'tiny')


def onnx(bundle, name='second'):
    engine = OnnxEngine(bundle, threads=1)
    engine.description = name
    return engine


def test_serves_until_the_build_is_done_and_then_switches(bundle):
    gate, inside = threading.Event(), threading.Event()

    def build(machine, stopped):
        machine.progress(0.25, 'timing layers')
        inside.set()
        assert gate.wait(10)
        return onnx(bundle)

    engine = FallbackEngine('better', onnx(bundle, 'first'), build, batch=2)
    assert inside.wait(10)
    assert (engine.status.state, engine.status.share) == (BUILDING, 0.25)
    assert str(engine.status) == 'building 25%: timing layers'
    assert engine.description == 'first, while better is building'
    before = engine.infer([FRAME])
    gate.set()
    assert engine.wait(10).state == RUNNING
    assert engine.description == 'second' and engine.name == 'better'
    np.testing.assert_array_equal(engine.infer([FRAME]).mask_logits, before.mask_logits)


def test_the_built_engine_is_warm_before_it_serves(bundle):
    seen = []

    class Watched(OnnxEngine):

        def infer(self, frames, **asked):
            seen.append((len(frames), engine.status.state))
            return super().infer(frames, **asked)

    started = threading.Event()
    engine = FallbackEngine(
        'better', onnx(bundle),
        lambda machine, stopped: started.wait(10) and Watched(bundle, threads=1), batch=2)
    started.set()
    engine.wait(10)
    assert seen and set(seen) == {(2, WARMING)}
    engine.infer([FRAME])
    assert seen[-1] == (1, RUNNING)


@pytest.mark.parametrize('error, reason', [
    (EngineError('no room for it'), 'no room for it'),
    (MemoryError('too much'), 'MemoryError: too much')])
def test_a_build_that_fails_leaves_the_first_at_work(bundle, error, reason):
    def build(machine, stopped):
        machine.note('a damaged file')
        raise error

    engine = FallbackEngine('better', onnx(bundle, 'first'), build)
    status = engine.wait(10)
    assert status == EngineStatus(FALLBACK, reason, notes=('a damaged file',))
    assert str(status) == f'fallback: {reason}'
    assert engine.description == 'first, while better failed'
    assert engine.infer([FRAME]).mask_logits.shape == (1, 8, 16, 24)


LEAVE = """
import sys
import time

from owseg_ros.bundle import load_bundle
from owseg_ros.engine import EngineError, OnnxEngine
from owseg_ros.engine.fallback import FallbackEngine


def build(machine, stopped):
    while not stopped():
        time.sleep(0.01)
    time.sleep(0.5)
    print('left in order', flush=True)
    raise EngineError('stopped')


engine = FallbackEngine('better', OnnxEngine(load_bundle(sys.argv[1]), threads=1), build)
"""


def test_a_process_ends_when_its_build_has_stopped(bundle):
    done = subprocess.run([sys.executable, '-c', LEAVE, str(bundle.path)], capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, 'left in order'), done.stderr


class Breaks(OnnxEngine):
    """Fails on frames once it is told to."""

    broken = closed = False

    def infer(self, frames, **asked):
        if self.broken:
            raise EngineError('the GPU fell off the bus')
        return super().infer(frames, **asked)

    def close(self):
        self.closed = True


def test_an_engine_that_fails_later_is_given_up_without_losing_the_frame(bundle):
    better = Breaks(bundle, threads=1)
    engine = FallbackEngine('better', onnx(bundle, 'first'), lambda *_: better)
    engine.wait(10)
    better.broken = True
    assert engine.infer([FRAME, FRAME]).mask_logits.shape[0] == 2
    assert engine.status == EngineStatus(FALLBACK, 'the GPU fell off the bus')
    assert better.closed and engine.description.startswith('first')
    better.broken = False
    engine.infer([FRAME])
    assert engine.status.state == FALLBACK


def test_what_both_refuse_is_no_fault_of_the_engine(bundle):
    engine = FallbackEngine('better', onnx(bundle), lambda *_: onnx(bundle))
    engine.wait(10)
    with pytest.raises(EngineError, match='at least one frame'):
        engine.infer([])
    assert engine.status.state == RUNNING


def test_closing_stops_the_build(bundle):
    inside, found = threading.Event(), []

    def build(machine, stopped):
        progress = BuildProgress(machine.progress, stopped)
        progress.start('layers', None, 1 << 40)
        found.append(progress.step('layers', 0))
        inside.set()
        step = 1
        while progress.step('layers', step):
            step += 1
        found.append(progress.stopped)
        raise EngineError('stopped')

    engine = FallbackEngine('better', onnx(bundle), build)
    assert inside.wait(10)
    engine.close()
    assert engine.wait(10).state == FALLBACK
    assert found == [True, True]


def test_states_follow_one_another():
    changes, told = [], []
    machine = StateMachine(changes.append, lambda *progress: told.append(progress))
    machine.progress(0.25, 'in time')
    assert (machine.status.share, told) == (0.25, [(0.25, 'in time')])
    for state in (BUILDING, WARMING, RUNNING):
        machine.enter(state)
    machine.progress(0.5, 'too late')
    assert machine.status == EngineStatus(RUNNING)
    machine.enter(FALLBACK, 'broke')
    assert [change.state for change in changes] == [WARMING, RUNNING, FALLBACK]
    with pytest.raises(ValueError, match='no way from fallback to running'):
        machine.enter(RUNNING)
    with pytest.raises(ValueError, match='no way from building to running'):
        StateMachine().enter(RUNNING)


def test_nested_phases_become_one_share():
    seen = []
    progress = BuildProgress(lambda share, step: seen.append((round(share, 3), step)))
    progress.start('engine', None, 2)
    progress.step('engine', 0)
    progress.start('layers', 'engine', 4)
    progress.step('layers', 0)
    progress.step('layers', 2)
    progress.finish('layers')
    progress.step('engine', 1)
    progress.finish('engine')
    assert seen == [
        (0.0, 'engine'), (0.5, 'engine'), (0.5, 'engine > layers'), (0.625, 'engine > layers'),
        (0.875, 'engine > layers'), (1.0, 'engine > layers'), (1.0, 'engine'), (1.0, 'engine')]
    progress.start('again', None, 4)
    assert seen[-1][0] == 1.0


def test_create_engine_says_what_is_missing_and_serves(bundle, monkeypatch):
    """The engine answers without TensorRT all the same, and says why it is another."""
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    engine = create_engine(bundle, 'tensorrt', threads=1)
    status = engine.wait(60)
    assert status.state == FALLBACK and 'TensorRT' in status.reason
    assert engine.infer([FRAME]).mask_logits.shape == (1, 8, 16, 24)
    assert 'onnx' in engine.description and 'tensorrt failed' in engine.description


def test_no_pass_takes_more_frames_than_the_engine_was_built_for(bundle):
    sizes = []

    class Counted(OnnxEngine):

        largest_batch = 2

        def _run(self, names, batch):
            sizes.append(len(batch))
            return super()._run(names, batch)

    frames = [Frame(paint(96, 64, color)) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    found = Counted(bundle, threads=1).infer(frames)
    assert sizes == [2, 1]
    wanted = onnx(bundle).infer(frames)
    np.testing.assert_allclose(found.mask_logits, wanted.mask_logits, atol=1e-4)
