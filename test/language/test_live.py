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
"""Live queries: newest message first, sets that survive what they should, and honest answers."""

from dataclasses import replace
import json
import threading

from owseg_ros.bundle import LanguageInfo, SameMeaning
from owseg_ros.language import CachingTextEncoder
from owseg_ros.language import live as live_module
from owseg_ros.language import TextEncoderError
from owseg_ros.language.live import LanguageSetup, LiveQueries, NO_MODEL
import pytest
from support.counting_encoder import CountingEncoder
from support.dds import wait_until

LANGUAGE = LanguageInfo('counting', 8, 0.05, (('road', 'street'), ('sky',)),
                        SameMeaning(0.6, 0.04, 0.05), 1.0, 0.5, '')
SETUP = LanguageSetup('tiny', LANGUAGE)


class Asker:
    """Live queries on a counting encoder, and what came of them."""

    def __init__(self):
        self.inner = CountingEncoder()
        self.problem = None
        self.opened = 0
        self.answers = []
        self.versions = []
        self.failures = []
        self.queries = LiveQueries(self.open, self.answers.append, self.live,
                                   self.failures.append)
        self.queries.start()

    def open(self, setup):  # noqa: A003
        """Return the encoder, or fail as told."""
        self.opened += 1
        if self.problem is not None:
            raise self.problem
        return CachingTextEncoder(self.inner)

    def live(self):
        """Note the version that has become live."""
        self.versions.append(self.queries.prepared.version)

    def answer(self, accept=lambda answer: True):
        """Wait for the next answer, or for one that is accepted, and return it as JSON says it."""
        def find():
            return next((answer for answer in list(self.answers)
                         if accept(answer.to_dict())), None)
        found = wait_until(find, what=lambda: [answer.to_dict() for answer in self.answers])
        self.answers.clear()
        return json.loads(json.dumps(found.to_dict()))

    def ready(self, **changes):
        """Configure and return self."""
        self.queries.configure(LanguageSetup('tiny', LANGUAGE, **changes))
        self.answer()
        return self

    def ask(self, message):
        """Ask and return the answer."""
        self.queries.ask(message)
        return self.answer()


@pytest.fixture
def asker():
    """Yield live queries; their thread ends with the test."""
    made = Asker()
    yield made
    made.inner.gate.set()
    assert made.queries.stop()
    assert made.failures == []


def test_an_answer_says_what_is_live(asker):
    answer = asker.ready().ask(json.dumps({'message_id': 'm1', 'queries': [
        'Dog', {'name': 'cone', 'threshold': 0.75, 'synonyms': ['pylon']}, 'DOG']}))
    assert answer == {
        'version': 1, 'message_id': 'm1', 'state': 'ready', 'error': '', 'space': 'counting',
        'active': ['dog', 'cone'], 'accepted': ['dog', 'cone'], 'thresholds': [0.5, 0.75],
        'rejected': [{'entry': 'DOG', 'reason': 'it is asked for twice'}],
        'queries': [
            {'name': 'dog', 'threshold': 0.5, 'wordings': ['dog', 'dogs', 'puppy']},
            {'name': 'cone', 'threshold': 0.75, 'wordings': ['cone', 'pylon']}]}
    assert asker.queries.prepared.names == ('dog', 'cone')
    assert asker.versions == [0, 1]
    again = asker.ask('[{"name": "dog"}, {"name": "cone", "threshold": 0.75, "synonyms": '
                      '["pylon"]}]')
    assert (again['version'], again['message_id']) == (1, None)
    assert asker.versions == [0, 1]


def test_a_message_with_the_setup_is_the_first(asker):
    asker.queries.configure(SETUP, 'dog')
    assert asker.answer()['active'] == ['dog']
    assert asker.ask('')['active'] == []
    assert asker.queries.prepared.version == 2
    state = asker.queries.state
    assert (state.messages, state.superseded, state.answered) == (2, 0, 2)


def test_the_newest_message_wins_and_frames_do_not_wait(asker):
    asker.ready().ask('dog')
    before = asker.queries.prepared
    asker.inner.gate.clear()
    asker.inner.waiting.clear()
    asker.queries.ask('cat')
    assert asker.inner.waiting.wait(20)
    for index in range(500):
        asker.queries.ask(f'thing {index}')
    assert asker.queries.prepared is before
    passes = len(asker.inner.asked)
    asker.inner.gate.set()
    asker.answer(lambda answer: answer['active'] == ['thing 499'])
    assert asker.inner.asked[passes:] == [['thing 499']]
    state = asker.queries.state
    assert (state.messages, state.superseded, state.answered) == (502, 499, 3)
    assert asker.queries.prepared.names == ('thing 499',)


def test_a_flood_is_answered_at_a_steady_pace(asker, monkeypatch):
    monkeypatch.setattr(live_module, 'PAUSE_SECONDS', 30.0)
    asker.ready()
    asker.inner.gate.clear()
    asker.inner.waiting.clear()
    asker.queries.ask('one')
    assert asker.inner.waiting.wait(20)
    asker.inner.gate.set()
    # A single message that waits is no flood.
    asker.queries.ask('two')
    asker.answer(lambda answer: answer['active'] == ['two'])
    asker.inner.gate.clear()
    asker.inner.waiting.clear()
    asker.queries.ask('three')
    assert asker.inner.waiting.wait(20)
    asker.queries.ask('four')
    asker.queries.ask('five')
    asker.inner.gate.set()
    asker.answer(lambda answer: answer['active'] == ['three'])
    assert asker.inner.asked[-1] == ['three']
    # The end does not wait for the pause.
    assert asker.queries.stop(10.0)
    assert asker.queries.state.active == ('three',)


def test_without_a_model_everything_is_rejected(asker):
    answer = asker.ask('dog, cat, dog')
    assert (answer['state'], answer['error'], answer['accepted']) == ('unconfigured', NO_MODEL, [])
    assert [(entry['entry'], entry['reason']) for entry in answer['rejected']] == [
        ('dog', 'it is asked for twice'), ('dog', NO_MODEL), ('cat', NO_MODEL)]
    assert asker.opened == 0


def test_a_model_without_words_says_so(asker):
    asker.queries.configure(LanguageSetup('plain', None), 'dog')
    answer = asker.answer()
    assert answer['state'] == 'unavailable' and asker.opened == 0
    assert 'plain' in answer['error'] and 'language' in answer['error']
    assert answer['rejected'] == [{'entry': 'dog', 'reason': answer['error']}]
    assert asker.queries.prepared is None


def test_an_encoder_that_is_put_into_place_later_is_found(asker, monkeypatch):
    asker.problem = TextEncoderError('run: owseg text-encoder')
    asker.queries.configure(SETUP)
    assert asker.answer()['error'] == 'run: owseg text-encoder'
    assert asker.queries.state.state == 'unavailable'
    # Not at each message of a flood.
    for _ in range(3):
        assert asker.ask('dog')['rejected'] == [
            {'entry': 'dog', 'reason': 'run: owseg text-encoder'}]
    assert asker.opened == 1
    asker.problem = None
    monkeypatch.setattr(live_module, 'RETRY_SECONDS', 0.0)
    assert asker.ask('dog')['active'] == ['dog']
    assert asker.opened == 2
    assert asker.queries.state.error == ''


@pytest.mark.parametrize('changes', [{'dim': 9}, {'space': 'other'}])
def test_an_encoder_of_another_space_is_refused(asker, changes):
    asker.queries.configure(LanguageSetup('tiny', replace(LANGUAGE, **changes)), 'dog')
    answer = asker.answer()
    assert answer['state'] == 'unavailable' and 'text space' in answer['error']
    assert answer['rejected'][0]['entry'] == 'dog' and answer['active'] == []


def test_what_fails_leaves_the_live_set_and_the_next_message_is_taken(asker):
    asker.ready().ask('dog')
    asker.inner.broken = True
    answer = asker.ask('cat')
    assert answer['error'] == 'broken' and answer['active'] == ['dog'] == [
        query['name'] for query in answer['queries']]
    assert answer['rejected'] == [{'entry': 'cat', 'reason': 'broken'}]
    assert answer['state'] == 'ready' and asker.queries.state.error == 'broken'
    asker.inner.broken = False
    assert asker.ask('cat')['active'] == ['cat']
    assert asker.queries.state.error == ''


def test_an_error_that_nobody_foresaw_is_answered_and_told(asker):
    asker.ready()
    encode, asker.inner.encode = asker.inner.encode, lambda texts: 1 / 0
    answer = asker.ask('dog')
    assert 'ZeroDivisionError' in answer['error'] == answer['rejected'][0]['reason']
    assert 'Traceback' in asker.failures.pop()
    asker.inner.encode = encode
    assert asker.ask('dog')['active'] == ['dog']


def test_thresholds_change_without_a_text_pass(asker):
    asker.ready(threshold=0.25).ask('dog, [1]')
    asker.ask('["dog", {"name": "cat", "threshold": 0.125}]')
    passes, version = asker.queries.state.text_passes, asker.queries.prepared.version
    assert list(asker.queries.prepared.thresholds) == [0.25, 0.125]
    asker.queries.adjust(threshold=0.75)
    assert asker.answer()['thresholds'] == [0.75, 0.125]
    asker.queries.adjust(threshold=None)
    assert asker.answer()['thresholds'] == [0.5, 0.125]
    assert asker.queries.prepared.version == version
    assert asker.queries.state.text_passes == passes == len(asker.inner.asked)
    assert asker.versions[-2:] == [version, version]


def test_a_vocabulary_is_read_again(asker, tmp_path, monkeypatch):
    monkeypatch.setattr(live_module, 'WATCH_SECONDS', 0.02)
    path = tmp_path / 'words.yaml'

    def write(*synonyms):
        path.write_text(json.dumps({
            'schema': 'owseg_ros/vocabulary', 'schema_version': 1,
            'templates': {'plain': ['{}'], 'caption': ['{}']},
            'entries': [{'name': 'dog', 'synonyms': list(synonyms)}]}))

    write('hound')
    asker.ready(vocabulary=str(path))
    first = asker.ask('dog')
    assert first['queries'][0]['wordings'] == ['dog', 'hound']
    write('mutt', 'cur')
    asker.queries.adjust(vocabulary=str(path))
    second = asker.answer()
    assert second['queries'][0]['wordings'] == ['dog', 'mutt', 'cur']
    assert second['version'] > first['version']
    # Also where it is edited and nobody says so.
    write('cur', 'hound')
    assert asker.answer()['queries'][0]['wordings'] == ['dog', 'cur', 'hound']
    path.write_text('nonsense: [')
    third = asker.answer()
    assert 'words.yaml' in third['error'] and third['active'] == ['dog']
    # What was read before goes on.
    fourth = asker.ask('cat, dog')
    assert fourth['error'] == '' and fourth['queries'][1]['wordings'] == ['dog', 'cur', 'hound']
    assert asker.ask('dog')['active'] == ['dog']
    asker.queries.adjust(vocabulary='')
    assert asker.answer()['queries'][0]['wordings'] == ['dog', 'dogs', 'puppy']


def test_names_of_regions_follow_setup_and_vocabulary(asker):
    asker.ready()
    assert asker.queries.namer is None and asker.queries.state.names == 0
    asker.queries.adjust(names=True)
    namer = wait_until(lambda: asker.queries.namer)
    assert 'traffic cone' in namer.names
    assert asker.queries.state.names == len(namer.names)
    asker.ask('dog')
    assert asker.queries.namer is namer
    asker.queries.adjust(vocabulary='')
    wait_until(lambda: asker.queries.namer is not namer)
    asker.queries.adjust(names=False)
    wait_until(lambda: asker.queries.namer is None)
    assert asker.queries.state.names == 0
    asker.inner.broken = True
    asker.inner.key = 'another'
    asker.queries.configure(LanguageSetup('tiny', LANGUAGE, names=True))
    wait_until(lambda: asker.queries.state.error == 'broken')
    assert asker.queries.namer is None


def test_a_query_does_not_wait_for_the_names_of_regions(asker):
    encode, named = asker.inner.encode, threading.Event()

    def encode_names_late(texts):
        assert len(texts) < 50 or named.wait(30)
        return encode(texts)

    asker.inner.encode = encode_names_late
    asker.queries.configure(replace(SETUP, names=True), 'stroller')
    assert asker.answer()['active'] == ['stroller']
    assert asker.queries.namer is None
    named.set()
    wait_until(lambda: asker.queries.namer)


def test_release_clears_and_versions_go_on(asker):
    version = asker.ready().ask('dog')['version']
    passes = asker.queries.state.text_passes
    asker.queries.release()
    answer = asker.answer()
    assert (answer['state'], answer['active'], answer['error']) == ('unconfigured', [], '')
    assert asker.queries.prepared is None
    asker.queries.configure(SETUP)
    answer = asker.answer()
    assert answer['active'] == [] and answer['version'] > version
    assert asker.opened == 2
    assert asker.queries.state.text_passes > passes


def test_what_was_begun_with_another_model_does_not_become_live(asker):
    asker.ready()
    asker.inner.gate.clear()
    asker.inner.waiting.clear()
    asker.queries.ask('dog')
    assert asker.inner.waiting.wait(20)
    asker.queries.configure(SETUP)
    asker.inner.gate.set()
    assert asker.answer()['active'] == []
    assert asker.queries.prepared.names == () and asker.answers == []
    state = asker.queries.state
    assert (state.messages, state.superseded, state.answered) == (1, 1, 0)


def test_many_threads_may_ask(asker):
    asker.ready()

    def ask(index):
        for number in range(50):
            asker.queries.ask(f'thing {index} {number}')

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asker.queries.ask('the last')
    asker.answer(lambda answer: answer['active'] == ['the last'])
    state = asker.queries.state
    assert state.messages == 401 == state.answered + state.superseded
