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
"""What the numbers of a camera mean on /diagnostics."""

import math

from owseg_ros.engine.status import EngineStatus
from owseg_ros.nodes.diagnostics import ERROR
from owseg_ros.nodes.diagnostics import FrameStatistics
from owseg_ros.nodes.diagnostics import judge_camera
from owseg_ros.nodes.diagnostics import judge_engine
from owseg_ros.nodes.diagnostics import OK
from owseg_ros.nodes.diagnostics import WARN
from owseg_ros.readout import ChosenReadout
import pytest


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture
def statistics(clock):
    """Return statistics on that clock."""
    return FrameStatistics(clock)


def judge(statistics, **changes):
    """Judge a camera that is watched and has a publisher, unless changed."""
    about = {'topic': '/image', 'publishers': 1, 'timeout': 2.0, 'idle': False,
             'incompatible': '', 'transport': 'Fast DDS profile X', **changes}
    return judge_camera(statistics.snapshot(), **about)


def test_rate_age_and_counts(statistics, clock):
    for number in range(101):
        statistics.frame_in(number % 10 == 0, 0.05 * number)
        statistics.frame_out(0.001 * number, 0.002 * number, 5.0, 3.0)
        clock.time += 0.05
    numbers = statistics.snapshot()
    assert (numbers.frames_in, numbers.frames_out, numbers.drops) == (101, 101, 11)
    assert numbers.rate_hz == pytest.approx(20.0, rel=1e-6)
    assert numbers.age_ms == pytest.approx((50.0, 95.0, 99.0))
    assert numbers.latency_ms == pytest.approx((100.0, 190.0, 198.0))
    values = numbers.values()
    assert values['age_ms_p95'] == '95.00' and values['network_ms'] == '5.00'
    assert judge(statistics)[:2] == (OK, 'running')


def test_without_frames_there_are_no_percentiles(statistics):
    numbers = statistics.snapshot()
    assert math.isnan(numbers.age_ms[0])
    assert numbers.values()['age_ms_p50'] == ''
    assert numbers.rate_hz == 0.0


def test_the_rate_falls_to_zero_when_frames_stop(statistics, clock):
    for _ in range(10):
        statistics.frame_out(0.01, 0.01, 1.0, 1.0)
        clock.time += 0.1
    clock.time += 60.0
    assert statistics.snapshot().rate_hz == 0.0


def test_stamps_of_another_clock_give_no_age(statistics):
    statistics.frame_in(False, 1.0)
    statistics.frame_out(3.0e7, 0.01, 1.0, 1.0)
    assert math.isnan(statistics.snapshot().age_ms[0])
    level, state, message = judge(statistics)
    assert (level, state) == (OK, 'running')
    assert 'a bag without use_sim_time?' in message
    statistics.frame_out(-1.7e9, 0.01, 1.0, 1.0)
    assert 'use_sim_time without a /clock?' in judge(statistics)[2]


@pytest.mark.parametrize('stamp, words', [
    (0.0, 'frames on /image have no stamp: let the driver set it'),
    (7.5, 'the last 5 frames on /image have one stamp')])
def test_a_stamp_that_stands_still_is_told(statistics, stamp, words):
    for number in range(5):
        assert judge(statistics)[0] == OK
        statistics.frame_in(False, stamp)
        statistics.frame_out(0.01, 0.01, 1.0, 1.0)
    level, state, message = judge(statistics)
    assert (level, state) == (WARN, 'running') and words in message
    assert judge(statistics, idle=True)[:2] == (WARN, 'idle')
    statistics.frame_in(False, 8.0)
    assert judge(statistics)[0] == OK


def test_stamps_that_go_back_are_told_for_a_while(statistics, clock):
    for stamp in (5.0, 6.0, 1.0, 2.0):
        statistics.frame_in(False, stamp)
        statistics.frame_out(0.01, 0.01, 1.0, 1.0)
    level, state, message = judge(statistics)
    assert (level, state) == (WARN, 'running') and 'went back (1 times): a bag' in message
    assert statistics.snapshot().values()['stamps_back'] == '1'
    clock.time += 5.0
    statistics.frame_in(False, 3.0)
    statistics.frame_out(0.01, 0.01, 1.0, 1.0)
    assert judge(statistics)[0] == OK


def test_a_second_publisher_is_told(statistics):
    statistics.frame_in(False, 1.0)
    statistics.frame_out(0.01, 0.01, 1.0, 1.0)
    level, state, message = judge(statistics, publishers=2)
    assert (level, state) == (WARN, 'running')
    assert '/image has 2 publishers, whose frames mix: end all but one' in message


def test_silence_names_its_likely_cause(statistics, clock):
    assert judge(statistics)[:2] == (OK, 'running')
    clock.time += 3.0
    level, state, message = judge(statistics)
    assert (level, state) == (WARN, 'no frames')
    assert 'Fast DDS profile X' in message
    assert judge(statistics, publishers=0)[2].endswith('nobody publishes /image')
    assert judge(statistics, publishers=0, elsewhere=lambda: 'look there')[2].endswith(
        'nobody publishes /image; look there')
    assert 'set it to best_available' in judge(
        statistics, incompatible='set it to best_available')[2]
    statistics.frame_in(False, 2.0)
    clock.time += 3.0
    assert 'went silent' in judge(statistics)[2]


def test_bad_frames_are_an_error_until_a_good_one_comes(statistics, clock):
    statistics.frame_in(False, 3.0)
    statistics.bad_frame('the data is too short')
    level, state, message = judge(statistics)
    assert (level, state) == (ERROR, 'bad frames')
    assert 'too short' in message
    clock.time += 0.1
    statistics.frame_in(False, 4.0)
    statistics.frame_out(0.01, 0.01, 1.0, 1.0)
    assert judge(statistics)[:2] == (WARN, 'bad frames')
    clock.time += 10.0
    statistics.frame_in(False, 5.0)
    statistics.frame_out(0.01, 0.01, 1.0, 1.0)
    assert judge(statistics)[:2] == (OK, 'running')
    assert statistics.snapshot().bad_frames == 1


def test_frames_without_an_answer_are_told(statistics, clock):
    statistics.frame_in(False, 1.0)
    statistics.frame_read(8192, 4096)
    for number in range(60):
        clock.time += 0.1
        statistics.frame_in(True, 1.1 + 0.1 * number)
    level, state, message = judge(statistics, smaller='shrink')
    assert (level, state) == (WARN, 'slow')
    assert 'frames of 8192x4096 come on /image' in message and 'answered for 6.0 s' in message
    assert message.endswith('if they are large, shrink')
    assert judge(statistics)[2].endswith('for 6.0 s')
    for answer in (lambda: statistics.frame_out(6.0, 6.0, 1.0, 1.0), statistics.skip,
                   lambda: statistics.bad_frame('')):
        answer()
        assert judge(statistics)[1] != 'slow'
        statistics.frame_in(False, 9.0)
        clock.time += 6.0
        assert judge(statistics, timeout=20.0)[1] != 'slow'
        statistics.frame_in(False, 9.1)
        assert judge(statistics)[1] == 'slow'


def test_a_frame_that_comes_after_a_pause_is_not_slow(statistics, clock):
    statistics.frame_in(False, 1.0)
    statistics.frame_out(0.01, 0.01, 1.0, 1.0)
    clock.time += 60.0
    statistics.frame_in(False, 61.0)
    assert judge(statistics)[:2] == (OK, 'running')


def test_maps_that_take_long_are_told_where_they_could_be_smaller(statistics, clock):
    cure = 'set output_size to network'
    statistics.frame_in(False, 1.0)
    statistics.frame_read(4096, 3072)
    statistics.frame_in(True, 1.1)
    # The next frame is read before the maps of the one before are done.
    statistics.frame_read(320, 240)
    assert statistics.snapshot().values()['frame_size'] == '320x240'
    statistics.frame_out(2.5, 2.5, 100.0, 2300.0, False, (4096, 3072))
    statistics.frame_out(0.5, 0.5, 100.0, 300.0, False, (320, 240))
    level, state, message = judge(statistics, smaller=cure)
    assert (level, state) == (WARN, 'running')
    assert f'maps of 4096x3072 took 2.3 s: {cure}' in message
    assert judge(statistics)[0] == OK
    clock.time += 6.0
    statistics.frame_in(False, 7.0)
    statistics.frame_out(0.5, 0.5, 100.0, 300.0, False, (320, 240))
    assert judge(statistics, smaller=cure)[0] == OK


def test_idle_and_reset(statistics):
    statistics.frame_in(False, 6.0)
    statistics.skip()
    assert judge(statistics, idle=True)[:2] == (OK, 'idle')
    statistics.reset()
    numbers = statistics.snapshot()
    assert (numbers.frames_in, numbers.skipped) == (0, 0)


@pytest.mark.parametrize('found, level, told, values', [
    (EngineStatus('running'), OK, '', {'engine_state': 'running'}),
    (EngineStatus('building', step='layers', share=0.256), OK, ' (building 26%: layers)',
     {'engine_build_percent': '26', 'engine_build_step': 'layers'}),
    (EngineStatus('warming', notes=('a', 'b')), OK, ' (warming)', {'engine_notes': 'a; b'}),
    (EngineStatus('fallback', 'no GPU'), WARN, ' (fallback: no GPU)',
     {'engine_state': 'fallback', 'engine_reason': 'no GPU'})])
def test_what_an_engine_does_is_told(found, level, told, values):
    got = judge_engine(found, ChosenReadout('cpu'))
    assert got[:2] == (level, told)
    assert got[2].items() >= values.items()
    assert ('engine_build_step' in got[2]) == (found.state == 'building')
