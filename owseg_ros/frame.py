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
Camera messages to NumPy and back: sensor_msgs/Image and CompressedImage.

Reading makes views wherever the layout allows it: ``image_to_array`` never copies data of the
machine's own byte order, and ``image_to_frame`` does not copy rgb8 and bgr8; row padding
(``step``) becomes a stride.  Such views share the message's buffer and keep it alive.
Writing makes one copy, with the only call that is fast whether or not rclpy checks fields.

Messages are taken as they come off the wire: whatever their fields hold, the outcome is an
image or a FrameError.
"""

from __future__ import annotations

from dataclasses import dataclass
import difflib
import operator
import re
import sys
from typing import Any, NoReturn

import cv2
import numpy as np
from owseg_ros.errors import OwsegError

MAX_PIXELS = 1 << 26
"""Largest image that is accepted, in pixels (8192 x 8192)."""

_BIG_ENDIAN_HOST = sys.byteorder == 'big'
_OPENCV_TYPE = re.compile(r'(8U|8S|16U|16S|32S|32F|64F)C([1-9][0-9]{0,2})')
_DEPTHS = {'8U': 'u1', '8S': 'i1', '16U': 'u2', '16S': 'i2', '32S': 'i4', '32F': 'f4', '64F': 'f8'}
_PACKED = {
    'mono8': ('u1', 1), 'mono16': ('u2', 1),
    'rgb8': ('u1', 3), 'bgr8': ('u1', 3), 'rgba8': ('u1', 4), 'bgra8': ('u1', 4),
    'rgb16': ('u2', 3), 'bgr16': ('u2', 3), 'rgba16': ('u2', 4), 'bgra16': ('u2', 4),
    'bayer_rggb8': ('u1', 1), 'bayer_bggr8': ('u1', 1),
    'bayer_gbrg8': ('u1', 1), 'bayer_grbg8': ('u1', 1),
    'bayer_rggb16': ('u2', 1), 'bayer_bggr16': ('u2', 1),
    'bayer_gbrg16': ('u2', 1), 'bayer_grbg16': ('u2', 1),
    'uyvy': ('u1', 2), 'yuv422': ('u1', 2), 'yuyv': ('u1', 2), 'yuv422_yuy2': ('u1', 2),
}
_PLANAR = ('nv12', 'nv21', 'nv24')
# OpenCV names a Bayer pattern by the second row, from the second pixel on; ROS by the first row.
_BAYER = {
    'bayer_rggb': cv2.COLOR_BayerBG2RGB,
    'bayer_bggr': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg': cv2.COLOR_BayerGR2RGB,
    'bayer_grbg': cv2.COLOR_BayerGB2RGB,
}
_YUV = {
    'uyvy': cv2.COLOR_YUV2RGB_UYVY, 'yuv422': cv2.COLOR_YUV2RGB_UYVY,
    'yuyv': cv2.COLOR_YUV2RGB_YUY2, 'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
    'nv12': cv2.COLOR_YUV2RGB_NV12, 'nv21': cv2.COLOR_YUV2RGB_NV21,
}
# The OpenCV types say nothing of colour; as in OpenCV itself, three channels are taken as BGR.
_COLOR_OF_TYPE = {
    '8UC1': 'mono8', '8UC3': 'bgr8', '8UC4': 'bgra8',
    '16UC1': 'mono16', '16UC3': 'bgr16', '16UC4': 'bgra16',
}
_COLOR_ENCODINGS = (
    'rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'mono16', 'rgb16', 'bgr16', 'rgba16', 'bgra16',
    '8UC1', '8UC3', '8UC4', '16UC1', '16UC3', '16UC4', 'uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2',
    'nv12', 'nv21', 'nv24', *(name + depth for name in _BAYER for depth in ('8', '16')))
_WRITABLE = {
    encoding: (np.dtype(kind), channels) for encoding, kind, channels in (
        ('mono8', 'u1', 1), ('mono16', 'u2', 1), ('rgb8', 'u1', 3), ('bgr8', 'u1', 3),
        ('rgba8', 'u1', 4), ('bgra8', 'u1', 4), ('8UC1', 'u1', 1), ('8UC3', 'u1', 3),
        ('16UC1', 'u2', 1), ('32FC1', 'f4', 1))}
# Fractions of its size at which libjpeg decodes a picture.
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4,
            2: cv2.IMREAD_REDUCED_COLOR_2}
# ITU-R BT.601, video range: the matrix that OpenCV applies to its other YUV encodings.
_YUV_TO_RGB = np.array([
    [1.164, 0.0, 1.596, -16 * 1.164 - 128 * 1.596],
    [1.164, -0.391, -0.813, -16 * 1.164 + 128 * (0.391 + 0.813)],
    [1.164, 2.018, 0.0, -16 * 1.164 - 128 * 2.018]], np.float32)


class FrameError(OwsegError):
    """
    An image message that cannot be read, or an array that cannot become one.

    ``topic`` (may be empty), ``encoding`` and ``expected`` say where it came from, what it
    claimed to be and what would have been right; the message holds all three.
    """

    def __init__(self, problem: str, *, topic: str = '', encoding: str = '', expected: str = ''):
        """Compose the message from what went wrong, where, and what was expected."""
        self.problem = problem
        self.topic = topic
        self.encoding = encoding
        self.expected = expected
        where = f'on {topic}' if topic else 'without a topic name'
        text = f'Image {where}, encoding {_describe(encoding)}: {problem}'
        super().__init__(f'{text}; expected {expected}' if expected else text)


@dataclass(frozen=True, eq=False)
class Frame:
    """
    A colour image.

    ``pixels`` is uint8 [H, W, 3], channels in ``order`` 'rgb' or 'bgr'; each row is contiguous
    and rows may be padded.  Other strides are copied.  It may be a view of a message: do not
    write to it.  ``full_size`` is (height, width) of the camera's image where the pixels are of
    a smaller one, decoded at a fraction of its size; it is what height and width return.
    """

    pixels: np.ndarray
    order: str = 'rgb'
    full_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the type and shape, and make rows contiguous where they are not."""
        pixels = self.pixels
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 \
                or pixels.shape[2] != 3 or pixels.size == 0:
            raise FrameError(f'{_describe(pixels)} is not a colour image',
                             encoding=str(self.order), expected='a NumPy array uint8 [H, W, 3]')
        if self.order not in ('rgb', 'bgr'):
            raise FrameError(f'the channel order {self.order!r} is not known',
                             encoding=str(self.order), expected="'rgb' or 'bgr'")
        if not pixels[0].flags.c_contiguous or pixels.strides[0] < 0:
            object.__setattr__(self, 'pixels', np.ascontiguousarray(pixels))

    @property
    def height(self) -> int:
        """Return the number of rows of the camera's image."""
        return self.pixels.shape[0] if self.full_size is None else self.full_size[0]

    @property
    def width(self) -> int:
        """Return the number of columns of the camera's image."""
        return self.pixels.shape[1] if self.full_size is None else self.full_size[1]

    def rgb(self) -> np.ndarray:
        """Return uint8 [H, W, 3] in RGB order; the pixels themselves if they are RGB already."""
        if self.order == 'rgb':
            return self.pixels
        return cv2.cvtColor(self.pixels, cv2.COLOR_BGR2RGB)


def image_to_array(msg: Any, topic: str = '') -> np.ndarray:
    """
    Read a sensor_msgs/Image as it is, without colour conversion.

    Returns [H, W] for one channel and [H, W, C] for more, in the dtype of the encoding and in
    native byte order: mono8, rgb8 and the like, bayer_*, 8UC1 to 64FCn, and packed YUV 4:2:2 as
    uint8 [H, W, 2].  nv12 and nv21 give uint8 [H * 3 / 2, W] and nv24 uint8 [H * 3, W], luma
    above chroma; the message's height is that of the luma plane.

    The result is a view of ``msg.data`` (padding as strides), except that data of the other
    byte order, unaligned data and padded nv24 are copied.

    :param msg: sensor_msgs/Image, or any object with its fields.
    :param topic: where it came from, for the error message.
    :raises FrameError: the message is malformed, or its encoding is not one of these.
    """
    header = _Header(msg, topic)
    array = header.native()
    if array.dtype.itemsize > 1 and header.big_endian != _BIG_ENDIAN_HOST:
        return array.byteswap()
    return array if array.flags.aligned else array.copy()


def image_to_frame(msg: Any, topic: str = '') -> Frame:
    """
    Read a sensor_msgs/Image of a camera as a colour frame.

    rgb8, bgr8 and 8UC3 (taken as BGR) are views of ``msg.data``.  All else is converted: alpha
    is dropped, grey is replicated, 16-bit data keep their high byte, YUV is ITU-R BT.601 in
    video range, Bayer patterns are demosaiced bilinearly.  Encodings that are not known here
    are handed to cv_bridge where that is installed.

    :param msg: sensor_msgs/Image, or any object with its fields.
    :param topic: where it came from, for the error message.
    :raises FrameError: the message is malformed, or holds no picture (32FC1 and the like).
    """
    header = _Header(msg, topic)
    encoding = _COLOR_OF_TYPE.get(header.encoding, header.encoding)
    if encoding in ('rgb8', 'bgr8'):
        return Frame(header.native(), encoding[:3])
    if encoding not in _COLOR_ENCODINGS:
        if _OPENCV_TYPE.fullmatch(encoding):
            header.refuse('this is not a picture but measurements or vectors',
                          'a camera image, such as rgb8, bgr8, mono8, yuv422 or bayer_rggb8; '
                          'check that the topic is the colour image and not depth')
        return _through_cv_bridge(msg, header)
    try:
        return Frame(_to_rgb(header, encoding))
    except cv2.error as error:
        raise FrameError(f'OpenCV cannot convert it ({_one_line(error)})', topic=header.topic,
                         encoding=header.encoding, expected='a well-formed image') from error


def compressed_to_frame(msg: Any, topic: str = '',
                        at_least: tuple[int, int] | None = None) -> Frame:
    """
    Decode a sensor_msgs/CompressedImage that holds a JPEG or a PNG.

    A JPEG may be decoded at half, a quarter or an eighth of its size, which leaves most of its
    coefficients out of the work: the frame then has a ``full_size``.

    The codec is told from the data.  ``format`` (such as 'jpeg' or 'rgb8; jpeg compressed
    bgr8') is consulted as image_transport's subscriber does: where it says that the image was
    compressed from other than BGR data, the decoded channels are in RGB order.  An EXIF
    rotation is not applied, since it would contradict camera_info.

    :param msg: sensor_msgs/CompressedImage, or any object with its fields.
    :param topic: where it came from, for the error message.
    :param at_least: (height, width) that the pixels must have where the image has them; None
        for all of them.
    :raises FrameError: the data are empty, truncated, of another codec, absurdly large or
        cannot be decoded.
    """
    encoding = getattr(msg, 'format', None)
    if not isinstance(encoding, str):
        raise FrameError(f'format is {_describe(encoding)}', topic=topic, encoding=str(encoding),
                         expected="a string such as 'jpeg' or 'rgb8; jpeg compressed bgr8'")
    if 'compressedDepth' in encoding:
        raise FrameError('this is a compressed depth image', topic=topic, encoding=encoding,
                         expected='a colour image as JPEG or PNG')
    data = _bytes_of(msg, topic, encoding)
    size = _compressed_size(data, topic, encoding)
    _check_pixels(*size, topic, encoding)
    mode = cv2.IMREAD_COLOR
    if at_least is not None and data[0] == 0xff:
        mode = next((reduced for part, reduced in _REDUCED.items()
                     if min(size[0] // at_least[0], size[1] // at_least[1]) >= part), mode)
    try:
        pixels = cv2.imdecode(data, mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise FrameError(f'it cannot be decoded ({_one_line(error)})', topic=topic,
                         encoding=encoding, expected='intact JPEG or PNG data') from error
    if pixels is None:
        raise FrameError(f'its {data.size} bytes cannot be decoded', topic=topic,
                         encoding=encoding, expected='intact JPEG or PNG data')
    source, _, rest = encoding.partition(';')
    stored_rgb = (re.fullmatch('(rgb|bgr)a?(8|16)', source.strip()) is not None
                  and 'compressed' in rest and 'compressed bgr' not in rest)
    return Frame(pixels, 'rgb' if stored_rgb else 'bgr',
                 None if mode == cv2.IMREAD_COLOR else size)


def array_to_image(array: np.ndarray, encoding: str, header: Any = None,
                   message: Any = None) -> Any:
    """
    Build a sensor_msgs/Image from an array, with one copy.

    :param array: [H, W] or [H, W, 1] for mono8, mono16, 8UC1, 16UC1 and 32FC1, [H, W, 3] for
        rgb8, bgr8 and 8UC3, [H, W, 4] for rgba8 and bgra8; uint8, uint16 for *16*, float32 for
        32FC1.  Any strides and byte order; the message has neither padding nor foreign order.
    :param header: std_msgs/Header to use as it is, or None.
    :param message: one that this function returned and that is of no use any more: it is written
        to and returned where it has the size and encoding, which saves a third of the time.
    :raises FrameError: the encoding is not one of these, or the array does not fit it.
    """
    from sensor_msgs.msg import Image

    if encoding not in _WRITABLE:
        raise FrameError('images of this encoding are not written', encoding=str(encoding),
                         expected=f"one of {', '.join(_WRITABLE)}")
    dtype, channels = _WRITABLE[encoding]
    if not isinstance(array, np.ndarray) or array.dtype.newbyteorder('=') != dtype or (
            array.shape[2:] != (channels,) and (array.ndim != 2 or channels != 1)
            ) or not array.size:
        shape = '[H, W]' if channels == 1 else f'[H, W, {channels}]'
        raise FrameError(f'{_describe(array)} does not fit', encoding=encoding,
                         expected=f'a NumPy array {dtype.name} {shape}, not empty')
    _check_pixels(array.shape[0], array.shape[1], '', encoding)
    array = np.ascontiguousarray(array, dtype)
    pixels = memoryview(array).cast('B')
    height, width = array.shape[:2]
    if message is not None and (message.height, message.width, message.encoding) == (
            height, width, encoding):
        message.header = type(message.header)() if header is None else header
        memoryview(message.data)[:] = pixels
        return message
    msg = Image()
    if header is not None:
        msg.header = header
    msg.height, msg.width = height, width
    msg.encoding = encoding
    msg.is_bigendian = int(_BIG_ENDIAN_HOST)
    msg.step = width * channels * dtype.itemsize
    # Assigning an array, bytes or a list to msg.data takes up to half a second at 1080p.
    msg.data.frombytes(pixels)
    return msg


def frame_to_compressed(
    frame: Frame, format: str = 'jpeg', header: Any = None, quality: int = 90,  # noqa: A002
) -> Any:
    """
    Build a sensor_msgs/CompressedImage from a frame.

    :param format: 'jpeg' or 'png'.
    :param header: std_msgs/Header to use as it is, or None.
    :param quality: JPEG quality 0..100; PNG is lossless and ignores it.
    :raises FrameError: the format is not one of these, or the image cannot be encoded.
    """
    from sensor_msgs.msg import CompressedImage

    options = {
        'jpeg': [cv2.IMWRITE_JPEG_QUALITY, int(quality)],
        'png': [cv2.IMWRITE_PNG_COMPRESSION, 1],
    }
    if format not in options:
        raise FrameError('frames are not compressed to this format', encoding=str(format),
                         expected="'jpeg' or 'png'")
    pixels = frame.pixels
    if frame.order == 'rgb':
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    try:
        done, encoded = cv2.imencode('.' + format, pixels, options[format])
    except cv2.error as error:
        raise FrameError(f'OpenCV cannot encode it ({_one_line(error)})', encoding=format,
                         expected='an image within the limits of the codec') from error
    if not done:
        raise FrameError('OpenCV cannot encode it', encoding=format,
                         expected='an image within the limits of the codec')
    msg = CompressedImage()
    if header is not None:
        msg.header = header
    msg.format = f'{frame.order}8; {format} compressed bgr8'
    msg.data.frombytes(memoryview(encoded).cast('B'))
    return msg


class _Header:
    """The checked scalar fields of an Image message, and a flat view of its data."""

    def __init__(self, msg: Any, topic: str):
        self.topic = topic
        encoding = getattr(msg, 'encoding', None)
        if not isinstance(encoding, str):
            raise FrameError(f'encoding is {_describe(encoding)}', topic=topic,
                             encoding=str(encoding), expected='a string such as rgb8')
        self.encoding = encoding
        self.height = self._integer(msg, 'height')
        self.width = self._integer(msg, 'width')
        self.step = self._integer(msg, 'step')
        self.big_endian = bool(self._integer(msg, 'is_bigendian'))
        _check_pixels(self.height, self.width, topic, encoding)
        self.data = _bytes_of(msg, topic, encoding)

    def refuse(self, problem: str, expected: str) -> NoReturn:
        raise FrameError(problem, topic=self.topic, encoding=self.encoding, expected=expected)

    def _integer(self, msg: Any, name: str) -> int:
        value = getattr(msg, name, None)
        try:
            number = operator.index(value)
        except TypeError:
            number = -1
        if not 0 <= number < 1 << 32:
            self.refuse(f'{name} is {_describe(value)}', f'{name} to be an integer of 32 bits')
        return number

    def native(self) -> np.ndarray:
        """Return the pixels in the byte order of the message, as image_to_array shapes them."""
        if self.encoding in _PLANAR:
            return self._planes()
        layout = _PACKED.get(self.encoding)
        if layout is None:
            match = _OPENCV_TYPE.fullmatch(self.encoding)
            if match is None:
                self.refuse_unknown()
            layout = _DEPTHS[match[1]], int(match[2])
        dtype, channels = np.dtype(layout[0]), layout[1]
        if self.encoding in _YUV and self.width % 2:
            self.refuse(f'the width {self.width} is odd', 'an even width, as two pixels share '
                                                          'their colour')
        size = dtype.itemsize
        self._check_layout(self.width * channels * size, self.height)
        shape: tuple[int, ...] = (self.height, self.width)
        strides: tuple[int, ...] = (self.step, channels * size)
        if channels > 1:
            shape, strides = (*shape, channels), (*strides, size)
        return np.ndarray(shape, dtype, self.data, 0, strides)

    def _planes(self) -> np.ndarray:
        height, width, step = self.height, self.width, self.step
        if self.encoding == 'nv24':
            self._check_layout(width, 3 * height)
            if step == width:
                return self.data[:3 * height * width].reshape(3 * height, width)
            luma = np.ndarray((height, width), np.uint8, self.data, 0, (step, 1))
            chroma = np.ndarray(
                (height, 2 * width), np.uint8, self.data, height * step, (2 * step, 1))
            return np.concatenate([luma, chroma.reshape(2 * height, width)])
        if width % 2 or height % 2:
            self.refuse(f'the size {width}x{height} is odd',
                        'an even width and height, as four pixels share their colour')
        self._check_layout(width, height * 3 // 2)
        return np.ndarray((height * 3 // 2, width), np.uint8, self.data, 0, (step, 1))

    def _check_layout(self, row: int, rows: int) -> None:
        """Check step and data against ``rows`` rows of ``row`` bytes."""
        if self.step < row:
            self.refuse(f'step is {self.step} bytes, too small for {self.width} pixels a row',
                        f'a step of {row} bytes or more')
        size, full = self.data.size, self.step * rows
        # Padding after the last row may be missing; nothing is lost then.
        if size < full - self.step + row:
            self.refuse(f'data holds {size} bytes, too few for {self.width}x{self.height} '
                        f'with step {self.step}', f'{full} bytes')
        if size >= full + self.step:
            self.refuse(f'data holds {size} bytes, at least one row more than '
                        f'{self.width}x{self.height} with step {self.step} has, so that size or '
                        'encoding cannot be right', f'{full} bytes')

    def refuse_unknown(self) -> NoReturn:
        known = (*_PACKED, *_PLANAR, '8UC1', '8UC3', '16UC1', '32FC1')
        close = difflib.get_close_matches(self.encoding[:40].lower(), known, n=1)
        guess = f' (did you mean {close[0]}?)' if close else ''
        self.refuse(f'the encoding is not known{guess}',
                    f"one of {', '.join(known)}; set the camera driver to one of these, "
                    'or install cv_bridge')


def _to_rgb(header: _Header, encoding: str) -> np.ndarray:
    """Convert any encoding of _COLOR_ENCODINGS but rgb8 and bgr8 to uint8 [H, W, 3] RGB."""
    native = header.native()
    if encoding in _YUV:
        return cv2.cvtColor(native, _YUV[encoding])
    if encoding == 'nv24':
        height, width = header.height, header.width
        chroma = native[height:].reshape(height, width, 2)
        # As OpenCV's own conversions do, treat what is below black as black.
        luma = np.maximum(native[:height], 16)
        return cv2.transform(np.dstack([luma, chroma]), _YUV_TO_RGB)
    if native.dtype.itemsize == 2:
        native = _high_bytes(header, native)
        encoding = encoding[:-2]
    else:
        encoding = encoding[:-1]
    if encoding in _BAYER:
        if header.height < 3 or header.width < 3:
            header.refuse(f'the size {header.width}x{header.height} is too small to demosaic',
                          'at least 3x3 pixels')
        return cv2.cvtColor(native, _BAYER[encoding])
    if encoding == 'mono':
        return cv2.cvtColor(native, cv2.COLOR_GRAY2RGB)
    if encoding == 'rgba':
        return cv2.cvtColor(native, cv2.COLOR_RGBA2RGB)
    if encoding == 'bgra':
        return cv2.cvtColor(native, cv2.COLOR_BGRA2RGB)
    if encoding == 'bgr':
        return cv2.cvtColor(native, cv2.COLOR_BGR2RGB)
    return native


def _high_bytes(header: _Header, native: np.ndarray) -> np.ndarray:
    """Return the high byte of 16-bit pixels, contiguous uint8 of the same shape."""
    offset = 0 if header.big_endian else 1
    return np.ascontiguousarray(
        np.ndarray(native.shape, np.uint8, header.data, offset, native.strides))


def _through_cv_bridge(msg: Any, header: _Header) -> Frame:
    """Convert an encoding that is not known here with cv_bridge, where it is installed."""
    try:
        from cv_bridge import CvBridge
    except ImportError:
        header.refuse_unknown()
    try:
        pixels = CvBridge().imgmsg_to_cv2(msg, 'bgr8')
    except Exception as error:
        # cv_bridge raises what its C++ and OpenCV parts raise; to callers it is one thing.
        raise FrameError(
            f'cv_bridge cannot convert it ({_one_line(error)})', topic=header.topic,
            encoding=header.encoding, expected=f"one of {', '.join(_COLOR_ENCODINGS)}") from error
    return Frame(pixels, 'bgr')


def _bytes_of(msg: Any, topic: str, encoding: str) -> np.ndarray:
    """Return ``msg.data`` as a flat view, uint8 [n]."""
    data = getattr(msg, 'data', None)
    try:
        view = memoryview(data)
        if view.nbytes == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(view, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise FrameError(
            f'data is {_describe(data)}', topic=topic, encoding=encoding,
            expected='bytes, as rclpy delivers them (array.array of uint8)') from error


def _check_pixels(height: int, width: int, topic: str, encoding: str) -> None:
    if height <= 0 or width <= 0:
        raise FrameError(f'the size {width}x{height} is empty', topic=topic, encoding=encoding,
                         expected='a width and height above zero')
    if height * width > MAX_PIXELS:
        raise FrameError(f'the size {width}x{height} is absurd', topic=topic, encoding=encoding,
                         expected=f'at most {MAX_PIXELS} pixels')


def _compressed_size(data: np.ndarray, topic: str, encoding: str) -> tuple[int, int]:
    """Return (height, width) from the headers of a complete JPEG or PNG, without decoding it."""
    raw = memoryview(data)
    if data.size == 0:
        raise FrameError('data is empty', topic=topic, encoding=encoding,
                         expected='JPEG or PNG data')
    if raw[:8] == b'\x89PNG\r\n\x1a\n':
        if data.size >= 33 and raw[12:16] == b'IHDR' and b'IEND' in bytes(raw[-64:]):
            return int.from_bytes(raw[20:24], 'big'), int.from_bytes(raw[16:20], 'big')
    elif raw[:2] == b'\xff\xd8':
        size = _jpeg_size(raw)
        if size is not None:
            return size
    else:
        raise FrameError(f'data begins with {bytes(raw[:4]).hex()}, which is neither JPEG nor PNG',
                         topic=topic, encoding=encoding,
                         expected='JPEG or PNG data; republish other codecs with image_transport')
    raise FrameError(f'its {data.size} bytes are truncated or damaged', topic=topic,
                     encoding=encoding, expected='all bytes of a JPEG or PNG file')


def jpeg_is_complete(data: bytes) -> bool:
    """Return whether these are a JPEG with all of its headers and its end-of-image marker."""
    return data[:2] == b'\xff\xd8' and _jpeg_size(memoryview(data)) is not None


def _jpeg_size(raw: memoryview) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG that has its end-of-image marker, else None."""
    position, size, end = 2, None, len(raw)
    while position + 4 <= end:
        if raw[position] != 0xff:
            return None
        marker = raw[position + 1]
        if marker == 0xff:
            position += 1
            continue
        if marker == 0x01 or 0xd0 <= marker <= 0xd7:
            position += 2
            continue
        if marker == 0xda:
            # Within the scans 0xff is always followed by 0 or a restart marker.
            complete = bytes(raw[position:]).rfind(b'\xff\xd9') >= 0
            return size if complete else None
        length = int.from_bytes(raw[position + 2:position + 4], 'big')
        is_frame = 0xc0 <= marker <= 0xcf and marker not in (0xc4, 0xc8, 0xcc)
        if length < (8 if is_frame else 2) or position + 2 + length > end:
            return None
        if is_frame:
            size = (int.from_bytes(raw[position + 5:position + 7], 'big'),
                    int.from_bytes(raw[position + 7:position + 9], 'big'))
        position += 2 + length
    return None


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f'an array {value.dtype.name} {list(value.shape)}'
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split())[:200]
