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
"""
Where frames come from: the procedural street, a video, a folder, an image, a webcam.

Every source has the same four members, so that the camera node, `owseg run` and the demo read
them alike.
"""

from __future__ import annotations

import os
from pathlib import Path
import re
from typing import Protocol

import cv2
import numpy as np
from owseg_ros.errors import OwsegError
from owseg_ros.frame import jpeg_is_complete
from owseg_ros.scene import SceneFrame, StreetScene

IMAGE_SUFFIXES = frozenset({'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'})
SCENE_FPS = 15.0
KINDS = ("'scene' (or 'scene:SEED'), the path of a video, of an image or of a folder of images, "
         "or 'webcam:0'")


class SourceError(OwsegError):
    """A source that cannot be opened or read; the message says what to give instead."""


class UnreadableImageError(SourceError):
    """An image of a folder that cannot be read; the source goes on with the next one."""


class Source(Protocol):
    """
    A stream of frames.

    name: what it is; fps: its own rate in frames a second, 0 where it has none; size: (width,
    height) in pixels of the first frame; frames: number of frames, 0 where it does not end;
    camera_matrix: float64 [3, 3] for frames of this size, None where it is not known.
    """

    name: str
    fps: float
    size: tuple[int, int]
    frames: int
    camera_matrix: np.ndarray | None

    def read(self) -> np.ndarray | None:
        """
        Return the next frame, uint8 [H, W, 3] RGB, or None at the end.

        Raises UnreadableImageError when this one cannot be read and the next may be, another
        SourceError when the source has ended.
        """

    def close(self) -> None:
        """Release the source; reading after that is an error of the caller."""


class SceneSource:
    """
    The procedural street: frame i of a StreetScene, without end.

    truth: the frame that was read last, with its labels; None before.
    """

    def __init__(self, seed: int = 0, width: int = 0, height: int = 0, fps: float = 0.0) -> None:
        width = width or (round(height * 4 / 3) if height else 640)
        height = height or round(width * 3 / 4)
        try:
            self.scene = StreetScene(width, height, seed, fps or SCENE_FPS)
        except ValueError as error:
            raise SourceError(f'the procedural street cannot be rendered: {error}') from error
        self.name = f'scene:{seed}'
        self.fps = self.scene.fps
        self.size = (width, height)
        self.frames = 0
        self.camera_matrix = self.scene.camera_matrix
        self.truth: SceneFrame | None = None
        self._index = 0

    def read(self) -> np.ndarray | None:
        """Return the next frame."""
        self.truth = self.scene.render(self._index)
        self._index += 1
        return self.truth.image

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class VideoSource:
    """A video file, or a webcam where `webcam` is its number."""

    def __init__(self, path: str = '', webcam: int | None = None, loop: bool = False) -> None:
        self.name = path if webcam is None else f'webcam:{webcam}'
        self.camera_matrix = None
        self._loop = loop and webcam is None
        self._live = webcam is not None
        # Quiet: what FFmpeg says of a damaged file comes beside the one line that SourceError is.
        os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
        self._capture = cv2.VideoCapture(path if webcam is None else webcam)
        hint = ('is it plugged in, free, and readable by this user (group video)?'
                if self._live else 'give a file that OpenCV can decode, such as MP4 or AVI')
        if not self._capture.isOpened():
            raise SourceError(f'{self.name} cannot be opened; {hint}')
        read, self._first = self._capture.read()
        if not read:
            self._capture.release()
            raise SourceError(f'{self.name} holds no frame that can be decoded; {hint}')
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps < 1000 else 0.0
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frames = 0 if self._live or self._loop else max(0, int(count))
        self.size = (self._first.shape[1], self._first.shape[0])

    def read(self) -> np.ndarray | None:
        """Return the next frame, from the start again at the end of a looped file."""
        frame, self._first = self._first, None
        if frame is None:
            read, frame = self._capture.read()
            if not read and self._loop:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
                read, frame = self._capture.read()
            if not read:
                if self._live:
                    raise SourceError(f'{self.name} stopped to deliver frames; reconnect it')
                return None
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        """Release the file or device."""
        self._capture.release()


class ImageSource:
    """
    Images of a folder in the order of their names, or a single one.

    Raises SourceError where there are none, or none that can be read.
    """

    def __init__(self, path: Path, loop: bool = False) -> None:
        self.name = str(path)
        self.fps = 0.0
        self.camera_matrix = None
        self._loop = loop
        self._paths = [path] if path.is_file() else sorted(
            p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not self._paths:
            raise SourceError(f'{path} holds no images; expected files that end in '
                              f'{", ".join(sorted(IMAGE_SUFFIXES))}')
        self.frames = 0 if loop else len(self._paths)
        self._index = 0
        self.size = self._first_size()

    def _first_size(self) -> tuple[int, int]:
        """Return (width, height) of the first image that can be read."""
        problem = None
        for path in self._paths:
            try:
                height, width, _ = self._image(path).shape
                return width, height
            except UnreadableImageError as error:
                problem = problem or error
        raise problem

    @staticmethod
    def _image(path: Path) -> np.ndarray:
        """Read an image upright, uint8 [H, W, 3] RGB."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UnreadableImageError(f'{path} cannot be read: {error.strerror}') from error
        if data.startswith(b'\xff\xd8') and not jpeg_is_complete(data):
            # OpenCV would paint what is missing grey.
            raise UnreadableImageError(f'{path} is no whole JPEG; copy it again or remove it')
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if image is None:
            raise UnreadableImageError(
                f'{path} cannot be decoded; remove it or save it again as an image')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def read(self) -> np.ndarray | None:
        """Return the next image; one that cannot be read is passed over after its error."""
        if self._index == len(self._paths):
            if not self._loop:
                return None
            self._index = 0
        path = self._paths[self._index]
        self._index += 1
        return self._image(path)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def open_source(spec: str, loop: bool = False, width: int = 0, height: int = 0,
                fps: float = 0.0) -> Source:
    """
    Open a source of frames.

    spec: 'scene' (or 'scene:SEED'), the path of a video, of an image or of a folder of images,
    or 'webcam:0'.  loop: start again at the end of a file or folder.  width, height: size at
    which the procedural street is rendered (0: 640x480, or what keeps 4:3), fps: frames a second
    of the street (0: 15); other sources have their own.
    Raises SourceError when there is nothing of this kind; the message says what to give.
    """
    match = re.fullmatch(r'(scene|webcam)(?::(\d{1,9}))?', spec.strip())
    if match and match[1] == 'scene':
        return SceneSource(int(match[2] or 0), width, height, fps)
    if match:
        return VideoSource(webcam=int(match[2] or 0), loop=loop)
    if not spec.strip():
        raise SourceError(f'no source is given; give {KINDS}')
    path = Path(spec).expanduser()
    if not path.exists():
        raise SourceError(f'there is no {spec}; give {KINDS}')
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(path, loop)
    return VideoSource(str(path), loop=loop)
