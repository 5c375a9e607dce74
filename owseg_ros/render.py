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
"""Maps as pictures for people: colours, heat, overlays, legends, contact sheets. RGB uint8."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from typing import Optional, Sequence

import cv2
import numpy as np

BACKGROUND = (24, 26, 30)
INK = (236, 238, 242)
FAINT_INK = (160, 166, 176)
ANOMALY_COLOR = (255, 0, 255)
UNKNOWN_HEAT_LOW, UNKNOWN_HEAT_HIGH = 0.0, 1.0

_FONT = cv2.FONT_HERSHEY_DUPLEX
_PADDING = 12


@lru_cache
def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return RGB colours 0..255 that differ from each other, for things that have none."""
    # Steps of sqrt(5) on the hue circle with three shades in turn: of the steps and shades that
    # were tried, those keep 64 colours, and the first 8 and 16, farthest apart.
    shades = ((1.0, 1.0), (0.9, 0.6), (0.5, 1.0))
    colors = []
    for index in range(count):
        saturation, value = shades[index % len(shades)]
        hue = (0.08 + index * 0.2360679774997896) % 1.0
        colors.append(tuple(
            round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value)))
    return tuple(colors)


def colorize(ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W, 3]: the colour of each id of uint8 [H, W]; palette uint8 [256, 3]."""
    table = np.ascontiguousarray(palette, np.uint8).reshape(256, 1, 3)
    return cv2.applyColorMap(ids, table)


def _heat_table() -> np.ndarray:
    steps = np.arange(256, dtype=np.uint8).reshape(256, 1)
    return cv2.cvtColor(cv2.applyColorMap(steps, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def anomaly_heat(score: np.ndarray, low: float = UNKNOWN_HEAT_LOW,
                 high: float = UNKNOWN_HEAT_HIGH) -> np.ndarray:
    """
    Return uint8 [H, W, 3]: an anomaly score float [H, W] from black (low) to pale yellow (high).

    The defaults suit RbA: known regions lie near or below 1 - tanh(1) = 0.24, unknown ones near
    1. Values outside are clipped. Raises ValueError unless low < high.
    """
    if not low < high:
        raise ValueError(f'low must be below high, not {low} and {high}')
    gain = 255.0 / (high - low)
    level = np.multiply(score, np.float32(gain), dtype=np.float32)
    level -= np.float32(low * gain)
    np.clip(level, 0, 255, out=level)
    return cv2.applyColorMap(level.astype(np.uint8), _heat_table())


def overlay(rgb: np.ndarray, color: np.ndarray, alpha: float = 0.5,
            mask: Optional[np.ndarray] = None,
            mask_color: Sequence[int] = ANOMALY_COLOR) -> np.ndarray:
    """
    Return uint8 [H, W, 3]: an image blended with a colour map, and a mask outlined on it.

    rgb: uint8 [H, W, 3]; color: uint8 of any size, stretched to the image; alpha: weight of
    color in 0..1; mask: uint8, non-zero inside, of any size: tinted and outlined in mask_color.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f'alpha must lie in [0, 1], not {alpha}')
    height, width = rgb.shape[:2]
    blended = cv2.addWeighted(rgb, 1.0 - alpha, _stretch(color, width, height), alpha, 0.0)
    if mask is not None:
        mask = _stretch(mask, width, height)
        if cv2.countNonZero(mask):
            tint = np.empty_like(blended)
            tint[...] = mask_color
            cv2.copyTo(cv2.addWeighted(blended, 0.45, tint, 0.55, 0.0), mask, blended)
            outline, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            thickness = max(1, round(width / 480))
            cv2.drawContours(blended, outline, -1, (255, 255, 255), thickness, cv2.LINE_AA)
    return blended


def query_overlay(rgb: np.ndarray, mask: np.ndarray,
                  colors: Sequence[Sequence[int]]) -> np.ndarray:
    """
    Return uint8 [H, W, 3]: an image in faint grey, what queries found in their colours.

    rgb: uint8 [H, W, 3]; mask: uint8 of any size, stretched to the image: index of the query,
    ids without a colour are nothing; colors: RGB of each query, such as distinct_colors.
    """
    height, width = rgb.shape[:2]
    mask = _stretch(mask, width, height)
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = cv2.addWeighted(grey, 0.6, np.full_like(grey, BACKGROUND), 0.4, 0.0)
    for index, color in enumerate(colors):
        inside = cv2.compare(mask, index, cv2.CMP_EQ)
        if cv2.countNonZero(inside):
            tint = np.empty_like(rgb)
            tint[...] = color
            cv2.copyTo(cv2.addWeighted(rgb, 0.35, tint, 0.65, 0.0), inside, picture)
            outline, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(picture, outline, -1, (255, 255, 255), max(1, round(width / 480)),
                             cv2.LINE_AA)
    return picture


def draw_names(picture: np.ndarray, names: Sequence[tuple[Sequence[float], str]],
               pixels: int = 11) -> None:
    """
    Write names at the upper left of boxes into an RGB picture, and draw the boxes.

    names: (box, name), a box being x0, y0, x1, y1 in 0..1 of the picture; pixels: height of
    capitals.
    """
    height, width = picture.shape[:2]
    for (x0, y0, x1, y1), name in names:
        left, top = round(x0 * width), round(y0 * height)
        cv2.rectangle(picture, (left, top), (round(x1 * width) - 1, round(y1 * height) - 1), INK,
                      1)
        wide, high = text_size(name, pixels)
        left = max(0, min(left, width - wide - 6))
        top = top - high - 4 if top >= high + 4 else top
        plate = picture[top:top + high + 4, left:left + wide + 6]
        plate[...] = plate // 4
        put_text(picture, name, left + 3, top + 2, pixels, max_width=width)


def _stretch(image: np.ndarray, width: int, height: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)


def fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return uint8 [height, width, 3]: the image scaled to fit, centred on the background."""
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    scale = min(width / image.shape[1], height / image.shape[0])
    inner = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    shrinks = scale < 1
    image = cv2.resize(image, inner, interpolation=cv2.INTER_AREA if shrinks
                       else cv2.INTER_LINEAR)
    canvas = blank(width, height)
    x, y = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas[y:y + inner[1], x:x + inner[0]] = image
    return canvas


def blank(width: int, height: int, color: Sequence[int] = BACKGROUND) -> np.ndarray:
    """Return a uint8 [height, width, 3] canvas of one colour."""
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[...] = color
    return canvas


def text_size(text: str, pixels: int) -> tuple[int, int]:
    """Return (width, height) in pixels of a line whose capitals are about `pixels` tall."""
    scale = cv2.getFontScaleFromHeight(_FONT, pixels, 1)
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    return width, height + baseline


def put_text(image: np.ndarray, text: str, left: int, top: int, pixels: int,
             color: Sequence[int] = INK, max_width: Optional[int] = None) -> None:
    """
    Write an anti-aliased line into an RGB image, its upper left corner at (left, top).

    pixels: height of capitals; max_width: the line is shortened with '...' to fit. Characters
    outside ASCII become '?', which is all that the built-in font has.
    """
    text = text.encode('ascii', 'replace').decode('ascii')
    if max_width is not None and text_size(text, pixels)[0] > max_width:
        while text and text_size(f'{text}...', pixels)[0] > max_width:
            text = text[:-1]
        text = f'{text}...'
    scale = cv2.getFontScaleFromHeight(_FONT, pixels, 1)
    (_, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    cv2.putText(image, text, (left, top + height), _FONT, scale,
                tuple(int(value) for value in color), 1, cv2.LINE_AA)


def legend(entries: Sequence[tuple[str, Sequence[int]]], width: int,
           pixels: int = 13) -> np.ndarray:
    """
    Return uint8 [h, width, 3]: a swatch and a name for each (name, colour), in as few rows.

    pixels: height of the text; the height of the picture follows from the number of rows.
    """
    swatch, line = round(1.5 * pixels), round(2.4 * pixels)
    places, x, y = [], _PADDING, _PADDING
    for name, color in entries:
        needed = swatch + pixels // 2 + text_size(name, pixels)[0] + round(1.6 * pixels)
        if x > _PADDING and x + needed > width - _PADDING:
            x, y = _PADDING, y + line
        places.append((x, y, name, color))
        x += needed
    picture = blank(width, y + line + _PADDING // 2)
    for x, y, name, color in places:
        cv2.rectangle(picture, (x, y), (x + swatch, y + swatch),
                      tuple(int(value) for value in color), cv2.FILLED)
        cv2.rectangle(picture, (x, y), (x + swatch, y + swatch), FAINT_INK, 1)
        left = x + swatch + pixels // 2
        put_text(picture, name, left, y + (swatch - pixels) // 2, pixels,
                 max_width=max(1, width - _PADDING - left))
    return picture


def contact_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]],
                  headers: Sequence[str] = (), title: str = '', cell_width: int = 360,
                  footer: Optional[np.ndarray] = None) -> np.ndarray:
    """
    Return one uint8 [H, W, 3] picture of rows of images with titles.

    rows: (row title, images); images are uint8 [h, w, 3] or [h, w] of any size, scaled to fit
        cells of cell_width whose shape is that of the very first image; a row may be shorter.
    headers: titles of the columns; title: of the sheet; footer: a picture below the rows, such
        as a legend, scaled to the width of the sheet where it is wider.
    Raises ValueError without any image.
    """
    rows = [(name, list(images)) for name, images in rows]
    columns = max((len(images) for _, images in rows), default=0)
    if columns == 0:
        raise ValueError('a contact sheet needs at least one image')
    first = next(images[0] for _, images in rows if images)
    cell_height = max(1, round(cell_width * first.shape[0] / first.shape[1]))
    width = columns * (cell_width + _PADDING) + _PADDING
    text, small = max(11, cell_width // 26), max(9, cell_width // 32)
    strips = []
    if title:
        strip = blank(width, 3 * text + _PADDING)
        put_text(strip, title, _PADDING, text, round(1.5 * text), max_width=width - 2 * _PADDING)
        strips.append(strip)
    if headers:
        strip = blank(width, 2 * text)
        for i, header in enumerate(headers[:columns]):
            put_text(strip, header, _PADDING + i * (cell_width + _PADDING), text // 2, text,
                     max_width=cell_width)
        strips.append(strip)
    for name, images in rows:
        caption = round(2.2 * small) if name else 0
        strip = blank(width, cell_height + caption + _PADDING)
        if name:
            put_text(strip, name, _PADDING, small // 2, small, FAINT_INK,
                     max_width=width - 2 * _PADDING)
        for i, image in enumerate(images):
            x = _PADDING + i * (cell_width + _PADDING)
            strip[caption:caption + cell_height, x:x + cell_width] = fit(
                image, cell_width, cell_height)
        strips.append(strip)
    if footer is not None:
        strips.append(fit(footer, width, max(1, round(
            footer.shape[0] * min(1.0, width / footer.shape[1])))))
    return np.concatenate(strips)
