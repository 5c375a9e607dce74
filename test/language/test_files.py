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
import os

from owseg_ros.language.files import copy_atomically, read_file, write_atomically
import pytest


def test_a_file_is_written_whole_and_its_folder_made(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'file'
    write_atomically(path, b'first')
    write_atomically(str(path), b'2nd')
    assert path.read_bytes() == b'2nd'
    assert os.listdir(path.parent) == ['file']
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_copy_replaces_a_file(tmp_path):
    source, path = tmp_path / 'source', tmp_path / 'new' / 'file'
    source.write_bytes(bytes(range(256)) * 300)
    write_atomically(path, b'first')
    copy_atomically(source, path)
    assert path.read_bytes() == source.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(OSError):
        copy_atomically(tmp_path / 'missing', path)
    assert path.read_bytes() == source.read_bytes() and os.listdir(path.parent) == ['file']


def test_what_fails_leaves_nothing(tmp_path):
    path = tmp_path / 'taken'
    (path / 'inside').mkdir(parents=True)
    with pytest.raises(OSError):
        write_atomically(path, b'text')
    assert os.listdir(tmp_path) == ['taken'] and os.listdir(path) == ['inside']


def test_a_file_is_read_as_far_as_asked(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'0123456789')
    assert read_file(path, 10) == read_file(str(path), 99) == b'0123456789'
    assert read_file(path, 3) == b'0123'
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / 'missing', 1)


def test_what_is_no_file_is_neither_waited_for_nor_replaced(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    for path in (pipe, '/dev/zero'):
        with pytest.raises(OSError, match='not a regular file'):
            read_file(path, 10)
    with pytest.raises(OSError):
        read_file(tmp_path, 10)
    with pytest.raises(OSError, match='not a regular file'):
        write_atomically(pipe, b'text')
    assert pipe.is_fifo() and os.listdir(tmp_path) == ['pipe']
