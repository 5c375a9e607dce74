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
"""The book of taught classes: names, ids, shots, threads, and the file that outlives it."""

import errno
import io
import os
from pathlib import Path
import subprocess
import sys
import threading
import zipfile

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_ros.novelty import NoveltyError, PrototypeBook
from owseg_ros.novelty.prototypes import MAX_SHOTS
import pytest
from support.tiny_bundle import color_embedding, make_tiny_bundle, METRIC_DIM

YELLOW, CYAN, GREY = (color_embedding(name) for name in ('yellow', 'cyan', 'black'))


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp('tiny') / 'bundle', novelty=True)


@pytest.fixture
def book(bundle):
    return PrototypeBook(bundle)


@pytest.fixture
def full(book):
    """Return a book with two classes, one of them with all that a class can have."""
    book.add_shot('pallet', YELLOW, stamp=1700000000.123456, source='node of robot 1')
    book.add_shot('pallet', CYAN)
    book.add_shot('cone', GREY, stamp=3.0)
    book.set_threshold('pallet', 0.65)
    book.set_color('cone', (1, 2, 3))
    return book


def contents(active):
    """Return what a set holds but its version, comparable."""
    return [(taught.id, taught.name, taught.color, taught.threshold, [
        (shot.embedding.tolist(), shot.stamp, shot.source) for shot in taught.shots])
        for taught in active.classes], active.prototypes.tolist(), active.space


def test_a_prototype_is_the_mean_of_its_shots_at_unit_length(book):
    """RAML, equation 10."""
    first = book.add_shot('pallet', YELLOW)
    np.testing.assert_allclose(first.prototypes, [YELLOW], atol=1e-6)
    second = book.add_shot('Pallet ', CYAN)
    mean = (YELLOW + CYAN) / 2
    np.testing.assert_allclose(second.prototypes, [mean / np.linalg.norm(mean)], atol=1e-6)
    third = book.add_shot('pallet', CYAN)
    mean = (YELLOW + 2 * CYAN) / 3
    np.testing.assert_allclose(third.prototypes, [mean / np.linalg.norm(mean)], atol=1e-6)
    assert third.names == ('pallet',) and len(third.classes[0].shots) == 3
    assert len(second.classes[0].shots) == 2 and book.active is third


def test_versions_rise_with_each_change_and_only_then(book, bundle):
    assert (book.active.version, book.active.classes) == (0, ())
    assert book.active.prototypes.shape == (0, METRIC_DIM)
    assert book.add_shot('pallet', YELLOW).version == 1
    assert book.rename('pallet', 'box').version == 2
    for refused in (lambda: book.add_shot('red', YELLOW), lambda: book.forget('pallet'),
                    lambda: book.set_threshold('box', 2.0)):
        with pytest.raises(NoveltyError):
            refused()
    assert book.active.version == 2
    assert book.clear().version == 3 and not book.active.classes
    assert PrototypeBook(bundle, version=7).add_shot('x', YELLOW).version == 8


def test_ids_follow_the_known_ones_and_stay(book, bundle):
    for name in ('a', 'b', 'c'):
        book.add_shot(name, YELLOW)
    assert [(taught.id, taught.name) for taught in book.active.classes] == [
        (3, 'a'), (4, 'b'), (5, 'c')]
    assert book.active.classes[1].color == tuple(bundle.palette()[4])
    book.forget('b')
    assert [(taught.id, taught.name) for taught in book.active.classes] == [(3, 'a'), (5, 'c')]
    book.add_shot('d', CYAN)
    book.rename('a', 'e')
    assert [(taught.id, taught.name) for taught in book.active.classes] == [
        (3, 'e'), (4, 'd'), (5, 'c')]
    np.testing.assert_allclose(book.active.prototypes, [YELLOW, CYAN, YELLOW], atol=1e-6)


def test_there_are_as_many_ids_as_below_unknown(book):
    for index in range(3, 254):
        book.add_shot(f'class {index}', YELLOW)
    assert book.active.classes[-1].id == 253
    with pytest.raises(NoveltyError, match='all 251 ids.*forget one'):
        book.add_shot('one more', YELLOW)
    book.add_shot('class 100', YELLOW)
    book.forget('class 100')
    assert book.add_shot('one more', YELLOW).classes[97].name == 'one more'


@pytest.mark.parametrize('name, pattern', [
    ('red', "'red' is a class that tiny knows already"), (' RED', 'knows already'),
    ('unknown', 'what no class is called'), ('Unknown object', 'what no class is called'),
    ('Unlabelled', 'what no class is called'),
    ('', 'empty'), ('a\nb', 'control character'), ('x' * 200, '200 characters')])
def test_names_that_cannot_be_taken(full, name, pattern):
    before = full.active
    with pytest.raises(NoveltyError, match=pattern):
        full.add_shot(name, YELLOW)
    with pytest.raises(NoveltyError, match=pattern):
        full.rename('pallet', name)
    assert full.active is before


def test_a_class_is_not_renamed_to_another(full):
    with pytest.raises(NoveltyError, match="a taught class 'cone' already"):
        full.rename('pallet', 'Cone')
    assert full.rename('pallet', 'pallet').names == ('pallet', 'cone')
    for call in (lambda: full.forget('box'), lambda: full.rename('box', 'crate'),
                 lambda: full.set_color('box', (1, 2, 3)), lambda: full.set_threshold('', 0.5)):
        with pytest.raises(NoveltyError, match='no taught class.*there are pallet, cone'):
            call()


@pytest.mark.parametrize('embedding, pattern', [
    (np.zeros(METRIC_DIM), 'length 0'), (YELLOW * 2, 'length 2'), (YELLOW[:5], r'not \[5\]'),
    (YELLOW[None], r'not \[1, 9\]'), (np.full(METRIC_DIM, np.nan), 'length nan'),
    (-YELLOW, 'cancel out')])
def test_shots_that_cannot_be_taken(book, embedding, pattern):
    book.add_shot('pallet', YELLOW)
    before = book.active
    with pytest.raises(NoveltyError, match=pattern):
        book.add_shot('pallet', embedding)
    with pytest.raises(NoveltyError, match='stamp'):
        book.add_shot('pallet', YELLOW, stamp=np.inf)
    assert book.active is before


def test_shots_of_a_class_are_bounded_and_its_own(book):
    row = YELLOW.copy()
    for _ in range(MAX_SHOTS):
        book.add_shot('pallet', row, source='a\nb' + 'x' * 500)
    row[:] = 0
    shot = book.active.classes[0].shots[0]
    np.testing.assert_array_equal(shot.embedding, YELLOW)
    assert len(shot.source) == 256 and shot.source.startswith('abx')
    with pytest.raises(ValueError):
        shot.embedding[0] = 1
    with pytest.raises(NoveltyError, match=f'{MAX_SHOTS} shots already'):
        book.add_shot('pallet', YELLOW)


@pytest.mark.parametrize('color', [(1, 2), (1, 2, 256), (1, 2, 3.0), (-1, 0, 0)])
def test_colours(full, color):
    with pytest.raises(NoveltyError, match='no colour'):
        full.set_color('pallet', color)


def test_threads_do_not_lose_shots(book):
    def teach(name):
        for _ in range(40):
            book.add_shot(name, YELLOW)

    interval = sys.getswitchinterval()
    threads = [threading.Thread(target=teach, args=(name,)) for name in ('a', 'b', 'a', 'b')]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [len(taught.shots) for taught in book.active.classes] == [80, 80]
    assert book.active.version == 160


def test_a_file_brings_everything_to_another_book(full, bundle, tmp_path):
    path = tmp_path / 'new' / 'prototypes.npz'
    assert full.save(path) is full.active
    other = PrototypeBook(bundle, version=4)
    other.add_shot('gone', YELLOW)
    loaded = other.load(str(path))
    assert contents(loaded) == contents(full.active)
    assert loaded.version == 6 and other.active is loaded
    assert other.add_shot('next', YELLOW).classes[2].id == 5


def test_an_empty_book_is_kept_too(book, bundle, full, tmp_path):
    PrototypeBook(bundle).save(tmp_path / 'p.npz')
    assert full.load(tmp_path / 'p.npz').classes == ()


names = st.text(st.characters(codec='utf-8', exclude_categories=['C']), min_size=1, max_size=20)


@given(st.dictionaries(names, st.integers(1, 3), max_size=5), st.integers(0, 2 ** 32 - 1))
@settings(max_examples=40, deadline=None)
def test_whatever_is_taught_is_read_back(bundle, tmp_path_factory, taught, seed):
    random = np.random.default_rng(seed)
    book = PrototypeBook(bundle)
    for name, shots in taught.items():
        for _ in range(shots):
            row = np.abs(random.normal(size=METRIC_DIM))
            try:
                book.add_shot(name, row / np.linalg.norm(row), source=name)
            except NoveltyError as error:
                assert 'no name' in str(error) or 'knows already' in str(error)
    path = tmp_path_factory.mktemp('books') / 'p.npz'
    book.save(path)
    assert contents(PrototypeBook(bundle).load(path)) == contents(book.active)


def rewrite(path, **changes):
    """Write an npz again with other arrays; None leaves one out."""
    with np.load(path) as arrays:
        whole = {**arrays, **changes}
    np.savez(path, **{name: array for name, array in whole.items() if array is not None})


@pytest.mark.parametrize('changes, pattern', [
    ({'schema': np.array('other')}, 'is no prototypes file'), ({'schema': None}, 'is no proto'),
    ({'schema_version': np.array(2)}, 'schema_version 2 is not known.*reads 1'),
    ({'network_sha256': np.array('0' * 64)}, r'another network .*0{12}\.\.\..*that of tiny'),
    ({'metric_head_sha256': np.array('1' * 64)}, 'another metric head'),
    ({'shots': np.zeros((3, 8), np.float32)}, "'shots' is missing or no"),
    ({'shots': None}, "'shots' is missing"),
    ({'shots': np.zeros((3, 9), np.float32)}, 'length 0'),
    ({'shots': np.full((3, 9), np.nan, np.float32)}, 'length nan'),
    ({'shot_counts': np.array([2, 2])}, 'do not add up'),
    ({'shot_counts': np.array([4, -1])}, 'do not add up'),
    ({'ids': np.array([2, 3])}, 'from 3 to 253'), ({'ids': np.array([3, 3])}, 'different'),
    ({'ids': np.array([3, 254])}, 'from 3 to 253'),
    ({'names': np.array(['cone', 'Cone'])}, 'the same name'),
    ({'names': np.array(['cone', 'red'])}, 'knows already'),
    ({'names': np.array(['cone'])}, "'names' is missing or no"),
    ({'thresholds': np.array([3.0, 0.5])}, 'cosine'),
    ({'thresholds': np.array([1, 0])}, "'thresholds' is missing or no"),
    ({'colors': np.zeros((2, 4), np.uint8)}, "'colors'"),
    ({'stamps': np.array([1.0, np.inf, 2.0])}, 'stamp'),
    ({'sources': np.array([None, None, None])}, 'no npz file'),
])
def test_files_that_make_no_sense(full, tmp_path, changes, pattern):
    path = tmp_path / 'p.npz'
    full.save(path)
    rewrite(path, **changes)
    before = full.active
    with pytest.raises(NoveltyError, match=pattern) as caught:
        full.load(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
    assert full.active is before


def test_files_that_are_none(full, tmp_path):
    path = tmp_path / 'p.npz'
    with pytest.raises(NoveltyError, match='cannot be read'):
        full.load(path)
    with pytest.raises(NoveltyError, match='cannot be read'):
        full.load(tmp_path)
    for data in (b'', b'PK\x03\x04', b'\x80\x04.', bytes(1000)):
        path.write_bytes(data)
        with pytest.raises(NoveltyError, match='is no npz file'):
            full.load(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('schema', b'owseg_ros/prototypes')
    with pytest.raises(NoveltyError, match="'schema' is no array"):
        full.load(path)


def test_a_file_that_unpacks_to_too_much_is_refused(full, tmp_path):
    """And so is one whose header claims more than there is."""
    path = tmp_path / 'p.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        with archive.open('shots.npy', 'w', force_zip64=True) as member:
            for _ in range(80):
                member.write(bytes(1 << 20))
    with pytest.raises(NoveltyError, match='when unpacked'):
        full.load(path)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {'descr': '<f4', 'fortran_order': False, 'shape': (10 ** 15, 9)})
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('shots.npy', stream.getvalue())
    with pytest.raises(NoveltyError, match='is no npz file'):
        full.load(path)


@given(st.integers(0, 10 ** 6), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_refused_or_sound(bundle, tmp_path_factory, offset, flip):
    """Whichever byte is wrong, a book never takes what it could not have written."""
    book = PrototypeBook(bundle)
    book.add_shot('pallet', YELLOW)
    path = tmp_path_factory.mktemp('damaged') / 'p.npz'
    book.save(path)
    data = bytearray(path.read_bytes())
    data[offset % len(data)] ^= flip
    path.write_bytes(data)
    other = PrototypeBook(bundle)
    try:
        other.load(path)
    except NoveltyError:
        assert other.active.classes == ()
    else:
        np.testing.assert_allclose(np.linalg.norm(other.active.prototypes, axis=1), 1, atol=1e-5)


def test_a_full_disk_leaves_the_file_as_it_was(full, tmp_path):
    path = tmp_path / 'p.npz'
    full.save(path)
    kept = path.read_bytes()
    for index in range(100):
        full.add_shot('box', YELLOW, source='x' * 200)
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from owseg_ros.bundle import load_bundle
from owseg_ros.novelty import NoveltyError, PrototypeBook
book = PrototypeBook(load_bundle({str(tmp_path / 'bundle')!r}))
book.load({str(path)!r})
for index in range(200):
    book.add_shot('box', book.active.prototypes[0])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    book.save({str(path)!r})
except NoveltyError as error:
    print(error)
"""
    make_tiny_bundle(tmp_path / 'bundle', novelty=True)
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'cannot be written' in found.stdout and os.strerror(errno.EFBIG) in found.stdout, found
    assert 'make room' in found.stdout
    assert path.read_bytes() == kept
    assert sorted(os.listdir(tmp_path)) == ['bundle', 'p.npz']


def test_a_killed_save_leaves_a_file_that_loads(bundle, tmp_path):
    """A process that saves without end is killed in the midst of it."""
    path = tmp_path / 'p.npz'
    code = f"""
import sys
from owseg_ros.bundle import load_bundle
from owseg_ros.novelty import PrototypeBook
book = PrototypeBook(load_bundle({str(bundle.path)!r}))
row = [0.0] * {METRIC_DIM}
row[0] = 1.0
while True:
    for index in range(20):
        book.add_shot(f'class {{index}}', row)
    book.save({str(path)!r})
    print('saved', flush=True)
    if len(book.active.classes[0].shots) > 200:
        book.clear()
"""
    for saves in (1, 3, 6):
        process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
        for _ in range(saves):
            assert process.stdout.readline() == b'saved\n'
        process.kill()
        process.wait()
        process.stdout.close()
        assert len(PrototypeBook(bundle).load(path).classes) == 20


def test_a_place_that_cannot_be_written(full, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    for path in (tmp_path / 'file' / 'p.npz', tmp_path, 'a\0b'):
        with pytest.raises(NoveltyError, match='cannot be written') as told:
            full.save(path)
        assert 'make room' not in str(told.value) and 'another file' in str(told.value)


def test_a_bundle_without_a_metric_head_has_no_book(tmp_path):
    with pytest.raises(NoveltyError, match='has no metric head'):
        PrototypeBook(make_tiny_bundle(tmp_path / 'b'))
