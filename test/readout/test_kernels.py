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
"""The compiled loops of the CPU readout: accuracy, types, and that they stay within arrays."""

import logging
import os
import subprocess
import sys
from unittest.mock import patch

import numpy as np
from owseg_ros import compiled
from owseg_ros.compiled import compile_all
from owseg_ros.readout import CpuReadout, kernels, reference
import pytest
from support.readouts import assert_close, network, SETTINGS
from support.tree import ROOT

# As Python, loops that leave an array raise; compiled they read what is there.
AS_PYTHON = """
import itertools
import numpy as np
from owseg_ros.compiled import compile_all
from owseg_ros.readout import CpuReadout, kernels, levels, objects, reference
from owseg_ros.readout.scores import Rba

compile_all()
assert not hasattr(kernels.fill_band, 'signatures'), 'compiled'
random = np.random.default_rng(0)
for rows, columns, vectors in ((16, 256, 32), (5, 16, 1), (3, 7, 2)):
    levels.BLOCK_ROWS, levels.BLOCK_COLUMNS, levels.VECTORS = rows, columns, vectors
    for (h, height), (w, width) in itertools.product(
            ((1, 3), (5, 5), (4, 12), (7, 5)),
            ((1, 4), (3, 3), (5, 20), (6, 17), (9, 4), (1, 2), (7, 14))):
        masks = random.normal(0, 4, (6, h, w)).astype(np.float32)
        shares = random.dirichlet([0.3] * 4, 6).astype(np.float32)[:, :3]
        for tolerance in (0.0, 0.3):
            found = CpuReadout(tolerance).scores(masks, shares, (height, width))
            wanted = reference.class_scores(masks, shares, (height, width))
            assert np.abs(found - wanted).max() <= tolerance + 2e-5, (h, w, height, width)
        for out in ((3, 2), (9, 15), (2 * height, 3 * width)):
            found = CpuReadout(0.0).anomaly_scores(
                masks, shares, (height, width), out, [Rba()])['rba']
            wanted = reference.rba(reference.class_scores(masks, shares, (height, width), out))
            assert np.abs(found - wanted).max() <= 1e-4, (h, w, height, width, out)
            objects.refine(found, masks, shares, (255 * random.random(out)).astype(np.uint8))
print('done')
"""


def test_loops_stay_within_their_arrays():
    result = subprocess.run(
        [sys.executable, '-c', AS_PYTHON], env={**os.environ, 'NUMBA_DISABLE_JIT': '1'},
        cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.stdout.endswith('done\n'), result.stderr[-2000:]


def test_tanh_is_as_exact_as_it_says():
    compile_all()
    values = np.concatenate([
        np.linspace(-12, 12, 200001), [0, 1e-30, -1e-30, 3e38, -3e38, np.inf, -np.inf]])
    values = values.astype(np.float32)
    total = np.empty((1, len(values)), np.float32)
    kernels.sum_tanh(values[None, None], 1, total)
    assert np.abs(total[0] - np.tanh(values.astype(np.float64))).max() < 1e-6


def test_masks_add_their_share_or_their_whole_weight():
    """Classes of the same votes stay equal, so that rounding decides nothing."""
    for logit in (-1e30, -90.0, -79.0, -40.0, -17.0, -1.0, 17.0, 40.0, 1e30):
        masks = np.full((5, 6, 7), logit, np.float32)
        weights = np.linspace(0.1, 0.9, 5, dtype=np.float32)[:, None].repeat(3, axis=1)
        found = CpuReadout(0.0).scores(masks, weights, (24, 28))
        share = 1 / (1 + np.exp(np.minimum(-logit, 700))) if logit > -80 else 0
        np.testing.assert_allclose(found, 2.5 * share, rtol=1e-5)
        assert (found == found[0]).all()


def test_labels_where_every_mask_is_off():
    """There the largest of tiny scores is the label, as in the published order."""
    random = np.random.default_rng(2)
    for count in (1, 7):
        masks = (random.normal(-45, 8, (count, 1, 1)) + random.normal(0, 0.3, (count, 20, 26))
                 ).astype(np.float32)
        shares = random.dirichlet(np.ones(6), count).astype(np.float32)[:, :5]
        found = CpuReadout()(masks, shares, (80, 104), (80, 104), SETTINGS)
        scores = reference.class_scores(masks.astype(np.float64), shares, (80, 104))
        assert scores.max() < 1e-6
        assert (found.semantic != reference.semantic(scores)).mean() < 1e-3


@pytest.mark.parametrize('size', [(7, 9), (13, 20), (14, 27), (352, 641)])
def test_cells_are_averaged(size):
    """Each by its area: pixels that lie in two cells count in both, by their share."""
    compile_all()
    plane = np.random.default_rng(7).random(size, np.float32)
    down, across = (
        np.clip(np.minimum((cell + 1) * side / count, pixel + 1)
                - np.maximum(cell * side / count, pixel), 0, None) * count / side
        for side, count, cell, pixel in (
            (side, count, np.arange(count)[:, None], np.arange(side))
            for side, count in zip(size, (7, 9))))
    expected = down @ plane @ across.T
    found = np.empty((7, 9), np.float32)
    kernels.shrink(plane, found)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    rounded = np.empty((7, 9), np.uint8)
    kernels.shrink_bytes((255 * plane).astype(np.uint8), rounded)
    assert np.abs(rounded - down @ (255 * plane).astype(np.uint8) @ across.T).max() <= 0.5001


def test_arrays_that_may_not_be_written_are_read():
    masks, probabilities = network(5, 6, 3, 16, 20, 6.0)
    task = masks, probabilities, (64, 80), (64, 80), SETTINGS
    expected = CpuReadout()(*task)
    masks.setflags(write=False)
    probabilities.setflags(write=False)
    found = CpuReadout()(*task)
    np.testing.assert_array_equal(found.anomaly_score, expected.anomaly_score)
    np.testing.assert_array_equal(found.semantic, expected.semantic)


@pytest.mark.parametrize('kind', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('backwards', [False, True])
def test_masks_of_any_float_and_layout(kind, backwards):
    masks, probabilities = network(6, 7, 4, 12, 15, 4.0)
    masks = masks.astype(kind)
    if backwards:
        masks = np.ascontiguousarray(masks[:, ::-1, ::-1])[:, ::-1, ::-1]
    task = masks.astype(np.float32), probabilities, (48, 60), (50, 70), SETTINGS
    assert_close(CpuReadout(0.0)(masks, *task[1:]), *task, 2e-5)


def test_nothing_is_compiled_while_frames_come():
    """Another type is an error here, not some seconds of compilation."""
    compile_all()
    with pytest.raises(TypeError):
        kernels.sum_tanh(np.zeros((1, 1, 1)), 1, np.zeros((1, 1), np.float32))


def test_without_a_folder_for_the_cache_it_is_compiled_anyway(caplog):
    original = compiled.numba.njit

    def without_folder(*signature, cache=False, **options):
        if cache:
            raise RuntimeError('cannot cache function: no locator available')
        return original(*signature, **options)

    with patch.object(compiled.numba, 'njit', without_folder), \
            patch.dict(compiled._SIGNATURES), caplog.at_level(logging.WARNING):
        doubled = compiled.compiled('int64(int64)')(lambda x: 2 * x)
        compile_all()
    assert doubled(4) == 8
    assert 'NUMBA_CACHE_DIR' in caplog.text and 'no locator' in caplog.text
