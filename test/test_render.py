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
"""Pictures for people: colours are exact, layouts have the size and places they promise."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_ros import render
import pytest


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_colorize_is_the_palette(height, width, seed):
    random = np.random.default_rng(seed)
    ids = random.integers(0, 256, (height, width), dtype=np.uint8)
    palette = random.integers(0, 256, (256, 3), dtype=np.uint8)
    np.testing.assert_array_equal(render.colorize(ids, palette), palette[ids])


def test_colorize_takes_views():
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    palette.setflags(write=False)
    np.testing.assert_array_equal(render.colorize(ids[:, ::2], palette), palette[ids[:, ::2]])


def test_heat_grows_with_the_score_and_clips():
    score = np.linspace(-4.0, 2.0, 601, dtype=np.float32)[None]
    heat = render.anomaly_heat(score).astype(int).sum(axis=2)[0]
    assert (np.diff(heat) >= -6).all()
    assert (heat[:400] == heat[0]).all() and (heat[501:] == heat[-1]).all()
    assert heat[-1] > 500 > 50 > heat[0]
    reds = render.anomaly_heat(np.full((1, 1), 0.6, np.float32))[0, 0]
    assert reds[0] > reds[2]  # the picture is RGB: warm, not blue
    with pytest.raises(ValueError, match='low must be below high'):
        render.anomaly_heat(score, 1.0, 1.0)


def test_overlay_blends_and_outlines():
    rgb = np.full((40, 60, 3), 100, np.uint8)
    color = np.zeros((40, 60, 3), np.uint8)
    np.testing.assert_array_equal(render.overlay(rgb, color, 0.0), rgb)
    np.testing.assert_array_equal(render.overlay(rgb, color, 1.0), color)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:40] = 255
    found = render.overlay(rgb, color, 0.5, mask)
    assert (found[:8] == 50).all()
    assert found[20, 30, 0] > 150 > found[20, 30, 1]  # tinted magenta
    assert (found[10, 25:35] > 220).all()             # outlined in white
    np.testing.assert_array_equal(rgb, np.full((40, 60, 3), 100, np.uint8))
    with pytest.raises(ValueError, match='alpha'):
        render.overlay(rgb, color, 1.5)


def test_overlay_stretches_maps_without_new_colours():
    rgb = np.zeros((40, 60, 3), np.uint8)
    color = np.zeros((10, 15, 3), np.uint8)
    color[:, 8:] = (10, 200, 30)
    found = render.overlay(rgb, color, 1.0)
    assert {tuple(value) for value in found.reshape(-1, 3)} == {(0, 0, 0), (10, 200, 30)}


def test_distinct_colors_differ():
    colors = np.array(render.distinct_colors(64), np.int64)
    assert colors.shape == (64, 3) and colors.min() >= 0 and colors.max() <= 255
    apart = np.abs(colors[:, None] - colors[None]).sum(axis=-1)
    np.fill_diagonal(apart, 999)
    assert apart.min() >= 20
    assert apart[:8, :8].min() >= 150
    # A colour stays with its id when more queries come.
    assert render.distinct_colors(3) == render.distinct_colors(64)[:3]
    assert render.distinct_colors(0) == ()


@pytest.mark.parametrize('box, inside', [
    ((0.25, 0.25, 0.75, 0.75), False), ((0, 0, 1, 1), True), ((0.95, 0.97, 1, 1), False),
    ((0.9, 0, 0.99, 0.04), True)])
def test_names_are_written_at_their_boxes(box, inside):
    """Above the box where there is room, else inside it."""
    picture = np.full((120, 160, 3), 60, np.uint8)
    render.draw_names(picture, [(box, 'dog')])
    bright = picture.max(axis=2) > 150
    x0, y0, x1, y1 = (round(value * size) for value, size in zip(box, (160, 120, 160, 120)))
    assert inside or bright[y0:y1, x0].all() and bright[y1 - 1, x0:x1].all()
    # The plate behind the name is darker than the picture, and near the box.
    rows, columns = np.nonzero(picture.max(axis=2) < 40)
    assert len(rows) > 100
    assert (rows.mean() > y0) == inside
    assert abs(rows.mean() - y0) < 25 and abs(columns.mean() - x0) < 40
    untouched = np.full((120, 160, 3), 60, np.uint8)
    render.draw_names(untouched, [])
    assert (untouched == 60).all()


@pytest.mark.parametrize('x0', [0.0, 0.5, 0.99])
def test_a_name_is_whole_also_at_the_edge(x0):
    picture = np.full((120, 160, 3), 60, np.uint8)
    render.draw_names(picture, [((x0, 0.5, 1.0, 0.9), 'traffic cone')])
    _, columns = np.nonzero(picture.max(axis=2) < 40)
    assert np.ptp(columns) + 1 == render.text_size('traffic cone', 11)[0] + 6


def test_query_overlay_colours_what_was_found():
    rgb = np.full((40, 60, 3), (200, 40, 40), np.uint8)
    mask = np.full((20, 30), 255, np.uint8)
    mask[5:15, 4:10], mask[5:15, 20:26], mask[0, 0] = 0, 1, 7
    found = render.query_overlay(rgb, mask, [(0, 255, 0), (0, 0, 255)]).astype(int)
    assert found.shape == rgb.shape
    assert found[20, 14, 1] > found[20, 14, 2] + 100 and found[20, 46, 2] > found[20, 46, 1] + 100
    assert np.ptp(found[20, 30]) < 10 and np.ptp(found[0, 0]) < 10 and found[20, 30].max() < 100
    assert (found[10, 10:18] > 200).all()   # outlined in white
    assert (rgb == (200, 40, 40)).all()


@pytest.mark.parametrize('shape', [(30, 60, 3), (200, 50, 3), (77, 131)])
def test_fit_keeps_the_aspect(shape):
    image = np.full(shape, 255, np.uint8)
    found = render.fit(image, 120, 90)
    assert found.shape == (90, 120, 3)
    rows, columns = np.nonzero((found == 255).all(axis=2))
    aspect = (np.ptp(columns) + 1) / (np.ptp(rows) + 1)
    assert aspect == pytest.approx(shape[1] / shape[0], rel=0.05)
    assert np.ptp(columns) + 1 == 120 or np.ptp(rows) + 1 == 90


def test_text_is_drawn_inside_its_box_and_shortened():
    canvas = render.blank(300, 60)
    render.put_text(canvas, 'Road, Pavement', 10, 10, 14)
    drawn = np.argwhere((canvas != np.array(render.BACKGROUND)).any(axis=2))
    assert len(drawn) > 50
    width, height = render.text_size('Road, Pavement', 14)
    top, left = drawn.min(axis=0)
    bottom, right = drawn.max(axis=0)
    assert 10 <= left and right <= 10 + width + 2
    assert 8 <= top and bottom <= 10 + height + 2
    canvas = render.blank(300, 60)
    render.put_text(canvas, 'a very long title ' * 10, 10, 10, 14, max_width=120)
    columns = np.nonzero((canvas != np.array(render.BACKGROUND)).any(axis=(0, 2)))[0]
    assert columns.max() <= 132
    render.put_text(canvas, 'für Straßen ☃', 0, 0, 12)


def test_legend_wraps_and_shows_each_colour():
    entries = [(f'class {index}', (20 * index, 255 - 20 * index, 7)) for index in range(12)]
    wide, narrow = render.legend(entries, 1600), render.legend(entries, 300)
    assert wide.shape[1] == 1600 and narrow.shape[1] == 300
    assert narrow.shape[0] > wide.shape[0]
    for picture in (wide, narrow):
        colors = {tuple(value) for value in picture.reshape(-1, 3)}
        assert {color for _, color in entries} <= colors


def test_contact_sheet_places_images():
    red = np.zeros((60, 80, 3), np.uint8)
    red[..., 0] = 255
    grey = np.full((30, 40), 200, np.uint8)
    sheet = render.contact_sheet(
        [('first', [red, grey]), ('second', [red])], headers=('input', 'mask'), title='Drive',
        cell_width=160, footer=render.legend([('Road', (128, 64, 128))], 400))
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 2 * (160 + 12) + 12
    reds = np.argwhere((sheet == (255, 0, 0)).all(axis=2))
    assert len(reds) == 2 * 160 * 120
    assert reds[:, 1].min() == 12 and reds[:, 1].max() == 171
    greys = np.argwhere((sheet == 200).all(axis=2))
    assert len(greys) >= 160 * 120 and greys[:, 1].min() >= 172


def test_contact_sheet_of_nothing():
    with pytest.raises(ValueError, match='at least one image'):
        render.contact_sheet([('empty', [])])
    with pytest.raises(ValueError, match='at least one image'):
        render.contact_sheet([])
