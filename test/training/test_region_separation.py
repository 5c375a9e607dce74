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

import numpy as np
from owseg_training.closed_set import ClosedSetTraining, load_network, predict_scores
from owseg_training.config import ConfigError
from owseg_training.mask_regions import MaskRegions
from owseg_training.regions import (
    connected_regions, Frame, nearest_region, read_frame, resize_regions)
from owseg_training.urs import sobel, uncertainty, UncertaintyRegions
import pytest
from support.camvid import tiny_config, write_camvid


def frame(image=None, scores=None, class_logits=None, mask_logits=None):
    """Return a frame of 40x60 that is all of class 0 unless told otherwise."""
    if image is None:
        image = np.full((40, 60, 3), 100, np.uint8)
    if scores is None:
        scores = np.zeros((3, *image.shape[:2]), np.float32)
        scores[0] = 8
    return Frame(image, scores, class_logits, mask_logits, np.zeros((2, 10, 15), np.float32))


def test_sobel_is_the_gradient_by_its_kernel():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (7, 9), dtype=np.uint8)
    found = sobel(np.repeat(grey[..., None], 3, 2))
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for y in range(1, 6):
        for x in range(1, 8):
            window = grey[y - 1:y + 2, x - 1:x + 2].astype(int)
            expected = np.hypot((window * kernel).sum(), (window * kernel.T).sum())
            assert found[y, x] == pytest.approx(expected, rel=1e-5)


def test_uncertainty_is_one_minus_the_best_probability():
    scores = np.random.default_rng(1).normal(0, 3, (4, 5, 6)).astype(np.float32)
    powers = np.exp(scores.astype(np.float64))
    assert np.allclose(uncertainty(scores), 1 - (powers / powers.sum(0)).max(0), atol=1e-6)
    shares = np.zeros((3, 1, 2), np.float32)
    shares[:, 0, 0] = 0.6, 0.2, 0.2
    assert np.allclose(uncertainty(shares, 'share'), [[0.4, 1.0]])
    assert np.isfinite(uncertainty(np.full((2, 1, 1), 1000, np.float32))).all()


def test_edges_are_of_the_picture_or_of_uncertainty():
    image = np.full((40, 60, 3), 100, np.uint8)
    image[:, 30:] = 150  # |gradient| 4 * 50 on the two columns beside the step.
    scores = np.zeros((3, 40, 60), np.float32)
    scores[0] = 8
    scores[1, 20] = 8  # Two classes as likely: uncertainty 0.5.
    edges = UncertaintyRegions(alpha=200, beta=0.4).edges(image, scores)
    expected = np.zeros((40, 60), bool)
    expected[:, 29:31] = True
    expected[20] = True
    assert np.array_equal(edges, expected)
    assert not UncertaintyRegions(alpha=201, beta=0.51).edges(image, scores).any()


def test_urs_parts_the_frame_at_its_edges():
    image = np.full((40, 60, 3), 100, np.uint8)
    image[:, 30:] = 150
    scores = np.zeros((3, 40, 60), np.float32)
    scores[0] = 8
    scores[1, 20] = 8
    regions = UncertaintyRegions(alpha=200, beta=0.4)(frame(image, scores))
    assert regions.dtype == np.int32
    quarters = [regions[10, 10], regions[10, 50], regions[30, 10], regions[30, 50]]
    assert sorted(quarters) == [1, 2, 3, 4]
    assert (regions[20] == 0).all() and (regions[:, 29:31] == 0).all()
    assert (regions[:20, :29] == regions[10, 10]).all()


def test_specks_of_edge_are_holes_but_outlines_are_not():
    scores = np.zeros((2, 40, 60), np.float32)
    scores[0] = 8
    scores[1, 5:8, 5:8] = 8  # A speck of 9 pixels.
    ring = np.zeros((40, 60), bool)
    ring[15:30, 20:40] = True
    ring[16:29, 21:39] = False
    scores[1, ring] = 8
    scores[1, 0, 50:53] = 8  # A speck at the border is no hole.
    regions = UncertaintyRegions(max_hole=9, min_area=10)(frame(scores=scores))
    around = regions[2, 2]
    assert (regions[5:8, 5:8] == around).all()
    assert (regions[ring] == 0).all() and (regions[0, 50:53] == 0).all()
    assert regions[20, 30] not in (0, around)
    assert regions.max() == 2
    kept = UncertaintyRegions(max_hole=8, min_area=10)(frame(scores=scores))
    assert (kept[5:8, 5:8] == 0).all()
    small = UncertaintyRegions(max_hole=9, min_area=13 * 18 + 1)(frame(scores=scores))
    assert small[20, 30] == 0 and small.max() == 1


def test_a_diagonal_edge_parts_what_is_beside_it():
    scores = np.zeros((2, 40, 40), np.float32)
    scores[0] = 8
    scores[1, range(40), range(40)] = 8
    regions = UncertaintyRegions(min_area=1)(frame(np.zeros((40, 40, 3), np.uint8), scores))
    assert regions.max() == 2
    assert regions[30, 5] != regions[5, 30]


def test_an_unknown_uncertainty_is_refused():
    with pytest.raises(ConfigError, match="unknown uncertainty 'entropy'; known: softmax, share"):
        UncertaintyRegions(kind='entropy')


def test_pieces_of_the_same_id_are_parted_and_numbered():
    ids = np.zeros((6, 10), np.int32)
    ids[:2, :2] = 7
    ids[4:, 4:] = 7
    ids[:2, 2:4] = 3
    ids[0, 9] = 3
    found = connected_regions(ids, 2)
    assert sorted(np.unique(found)) == [0, 1, 2, 3]
    assert found[0, 9] == 0
    assert len({found[0, 0], found[5, 9], found[0, 3]}) == 3
    assert np.array_equal(found > 0, (ids > 0) & ~((np.arange(10) == 9) & (ids == 3)))
    diagonal = np.eye(3, dtype=np.int32)
    assert connected_regions(diagonal, 1, 8).max() == 1
    assert connected_regions(diagonal, 1, 4).max() == 3


def test_edges_take_the_nearest_region():
    regions = np.array([[1, 0, 0, 0, 2]], np.int32)
    found = nearest_region(regions)
    assert found[0, 1] == 1 and found[0, 3] == 2 and (found > 0).all()
    assert not nearest_region(np.zeros((2, 2), np.int32)).any()


def test_resizing_keeps_numbers():
    regions = np.kron(np.array([[1, 300], [70000, 0]], np.int32), np.ones((4, 4), np.int32))
    assert np.array_equal(resize_regions(regions, (2, 2)), [[1, 300], [70000, 0]])


def mask_frame():
    """Return a frame with three masks: left, right and an unlikely one over everything."""
    masks = np.full((3, 10, 15), -9, np.float32)
    masks[0, :, :6] = 9
    masks[1, :, 8:] = 9
    masks[1, 4:6, 8:] = -9  # In two pieces.
    masks[2] = 5
    logits = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 9]], np.float32)
    return frame(class_logits=logits, mask_logits=masks)


def test_a_pixel_belongs_to_the_mask_that_claims_it_most():
    whole = MaskRegions(min_probability=0.5, split=False)(mask_frame())
    assert whole.dtype == np.int32
    assert whole[20, 5] == 1 and whole[5, 55] == whole[35, 55] == 2
    assert whole[20, 28] == whole[20, 50] == 0
    pieces = MaskRegions(min_probability=0.5)(mask_frame())
    assert len({pieces[20, 5], pieces[5, 55], pieces[35, 55], 0}) == 4
    # The third mask has what no object claims.
    all_of_them = MaskRegions(split=False)(mask_frame())
    assert all_of_them[20, 28] == 3 and all_of_them[20, 5] == 1


def test_unsure_and_small_masks_are_no_regions():
    unsure = mask_frame()
    unsure.mask_logits[0, :, :6] = -0.5
    assert MaskRegions(min_probability=0.5)(unsure)[20, 5] == 0
    assert MaskRegions(0.3, min_probability=0.5)(unsure)[20, 5] > 0
    for split in (True, False):
        found = MaskRegions(min_probability=0.5, split=split, min_area=960)(mask_frame())
        assert found[20, 5] == 1 and found.max() == 1


def test_a_frame_is_read_at_its_own_size(tmp_path):
    run = ClosedSetTraining(tiny_config(write_camvid(tmp_path)), tmp_path / 'run', 'cpu')
    run.save()
    network, config = load_network(run.folder)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    found = read_frame(network, image, config)
    assert found.scores.shape == (3, 50, 70) and found.scores.dtype == np.float32
    assert np.allclose(found.scores, predict_scores(network, image, config).numpy(), atol=1e-6)
    assert found.class_logits.shape == (6, 4) and found.mask_logits.shape == (6, 16, 24)
    assert found.features.shape == (32, 16, 24)
    for separation in (UncertaintyRegions(kind='share'), MaskRegions()):
        assert separation(found).shape == (50, 70)
