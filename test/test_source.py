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
import subprocess
import sys

import cv2
import numpy as np
from owseg_ros.source import open_source, SourceError, UnreadableImageError
import pytest


def write_video(path, frames=6, size=(64, 48), fps=12.0):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), fps, size)
    assert writer.isOpened()
    for index in range(frames):
        writer.write(np.full((size[1], size[0], 3), (0, 0, 30 * index), np.uint8))
    writer.release()
    return str(path)


def test_scene_is_the_street_of_its_seed():
    source = open_source('scene:3', width=160)
    assert source.size == (160, 120) and source.frames == 0 and source.fps == 15
    first, second = source.read(), source.read()
    assert np.array_equal(first, source.scene.render(0).image)
    assert np.array_equal(second, source.scene.render(1).image)
    assert np.array_equal(source.camera_matrix, source.scene.camera_matrix)
    assert open_source('scene', width=160, fps=5).fps == 5


def test_video_is_read_in_rgb_to_its_end(tmp_path):
    source = open_source(write_video(tmp_path / 'v.avi'))
    assert source.size == (64, 48) and source.frames == 6
    assert source.fps == pytest.approx(12)
    reds = []
    while (frame := source.read()) is not None:
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        assert frame[..., 1:].max() < 12
        reds.append(int(np.median(frame[..., 0])))
    source.close()
    assert len(reds) == 6
    assert np.abs(np.array(reds) - 30 * np.arange(6)).max() < 8
    assert source.read() is None


def test_looped_video_starts_again(tmp_path):
    source = open_source(write_video(tmp_path / 'v.avi', frames=3), loop=True)
    reds = [int(np.median(source.read()[..., 0])) for _ in range(7)]
    source.close()
    assert np.abs(np.array(reds) - np.array([0, 30, 60, 0, 30, 60, 0])).max() < 8


def test_folder_of_images_in_order_of_names(tmp_path):
    for index, name in enumerate(('b.PNG', 'a.png', 'c.png')):
        cv2.imwrite(str(tmp_path / name), np.full((8, 10, 3), (0, 0, 50 * index), np.uint8))
    (tmp_path / 'notes.txt').write_text('not an image')
    source = open_source(str(tmp_path))
    assert source.frames == 3 and source.size == (10, 8)
    assert [int(source.read()[0, 0, 0]) for _ in range(3)] == [50, 0, 100]
    assert source.read() is None
    again = open_source(str(tmp_path / 'c.png'), loop=True)
    assert int(again.read()[0, 0, 0]) == int(again.read()[0, 0, 0]) == 100


def test_damaged_image_is_an_error_and_the_next_one_is_read(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / 'b.png').write_bytes(b'\x89PNG damaged')
    cv2.imwrite(str(tmp_path / 'c.png'), np.full((4, 4, 3), 9, np.uint8))
    source = open_source(str(tmp_path))
    source.read()
    with pytest.raises(SourceError, match='b.png'):
        source.read()
    assert source.read()[0, 0, 0] == 9


def test_size_is_that_of_the_first_image_that_can_be_read(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'')
    with pytest.raises(SourceError, match='a.jpg cannot be decoded'):
        open_source(str(tmp_path))
    cv2.imwrite(str(tmp_path / 'b.png'), np.zeros((4, 6, 3), np.uint8))
    source = open_source(str(tmp_path))
    assert source.size == (6, 4)
    with pytest.raises(UnreadableImageError, match='a.jpg'):
        source.read()
    assert source.read().shape == (4, 6, 3) and source.read() is None


def test_half_a_jpeg_is_no_image(tmp_path):
    path = tmp_path / 'half a düne.jpg'
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = cv2.imencode('.jpg', picture)[1].tobytes()
    path.write_bytes(whole)
    assert open_source(str(path)).read().shape == (64, 64, 3)
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UnreadableImageError, match='no whole JPEG'):
        open_source(str(path))


@pytest.mark.parametrize('spec, says', [
    ('', 'webcam:0'), ('no/such/file.mp4', 'no/such/file.mp4'), ('webcam:77', 'group video'),
    ('scene:x', 'there is no scene:x')])
def test_what_cannot_be_opened_says_what_to_give(spec, says):
    with pytest.raises(SourceError, match=says):
        open_source(spec)


def test_empty_folder_and_a_file_that_is_no_video(tmp_path):
    with pytest.raises(SourceError, match='holds no images'):
        open_source(str(tmp_path))
    (tmp_path / 'x.mp4').write_bytes(b'this is no video')
    with pytest.raises(SourceError, match='cannot be opened|holds no frame'):
        open_source(str(tmp_path / 'x.mp4'))
    with pytest.raises(SourceError, match='64x64'):
        open_source('scene', width=32, height=20)


def test_of_a_damaged_video_only_the_error_is_said(tmp_path):
    # In a process of its own: FFmpeg asks once how much it is to say.
    path = tmp_path / 'a drive.mp4'
    path.write_bytes(b'no video')
    said = subprocess.run(
        [sys.executable, '-m', 'owseg_ros.cli', 'run', '--video', str(path),
         '--out', str(tmp_path / 'out')], capture_output=True, text=True, timeout=300)
    assert said.returncode == 2
    assert said.stderr.splitlines() == [
        f'owseg: {path} cannot be opened; give a file that OpenCV can decode, such as MP4 or AVI']
    assert not (tmp_path / 'out').exists()
