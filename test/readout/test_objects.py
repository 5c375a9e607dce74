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
"""The refinement of the anomaly score: synthetic scenes, its invariances, and real frames."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from owseg_ros.bundle import default_bundle_path, load_bundle
from owseg_ros.engine import create_engine
from owseg_ros.frame import Frame
from owseg_ros.readout import read_out, ReadoutSettings
from owseg_ros.readout.objects import ObjectSettings, refine
from owseg_ros.readout.reference import upsample_bilinear
from owseg_training.evaluate import anomaly_metrics
import pytest
from support.data import data_path

SHAPE = (192, 256)
MASKS = (48, 64)
OBJECT = np.s_[64:128, 80:160]


def components(mask):
    """Return the areas of the 8-connected components of a bool mask."""
    return cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]


def scene(seed=0):
    """Return a speckled score, mask logits, probabilities and a frame with one bright object."""
    random = np.random.default_rng(seed)
    truth = np.zeros(SHAPE, bool)
    truth[OBJECT] = True
    score = np.where(random.random(SHAPE) < np.where(truth, 0.6, 0.06), 0.9, 0.1)
    low = cv2.resize(truth.astype(np.float32), MASKS[::-1], interpolation=cv2.INTER_AREA)
    logits = np.stack([12 * low - 6, 6 - 12 * low])
    probabilities = np.array([[0.0, 0.02], [0.98, 0.01]], np.float32)  # the object has no class
    image = np.where(truth[..., None], 200, 60) + random.integers(-5, 6, (*SHAPE, 3))
    return (score.astype(np.float32), logits.astype(np.float32), probabilities,
            image.astype(np.uint8), truth)


@pytest.mark.parametrize('with_image', [True, False])
def test_a_speckled_object_becomes_one_component(with_image):
    score, logits, probabilities, image, truth = scene()
    assert len(components(score > 0.5)) > 20
    refined = refine(score, logits, probabilities, image if with_image else None)
    assert refined.shape == SHAPE and refined.dtype == np.float32
    found = refined > 0.5
    assert len(components(found)) == 1
    assert (found & truth).sum() / (found | truth).sum() > 0.75


def test_edges_of_the_frame_sharpen_the_outline():
    score, logits, probabilities, image, truth = scene()
    band = cv2.dilate(truth.astype(np.uint8), np.ones((5, 5))) != cv2.erode(
        truth.astype(np.uint8), np.ones((5, 5)))

    def errors(picture):
        found = refine(score, logits, probabilities, picture) > 0.5
        return np.count_nonzero((found != truth) & band)

    assert errors(image) < errors(None)
    assert errors(image) < errors(np.full_like(image, 128))


def test_a_query_without_class_still_groups():
    score, logits, probabilities, image, truth = scene()
    unvoted = ObjectSettings(no_object_vote=0.0)
    probabilities[0] = 0

    def spread(settings):
        return refine(score, logits, probabilities, image, settings)[truth].std()

    assert spread(ObjectSettings()) < 0.6 * spread(unvoted)


def test_it_ignores_the_scale_of_the_score():
    score, logits, probabilities, image, _ = scene()
    refined = refine(score, logits, probabilities, image)
    for gain, offset in ((25.0, -19.0), (1e-4, 0.0), (3e6, 1e7)):
        other = refine((gain * score.astype(np.float64) + offset).astype(np.float32), logits,
                       probabilities, image)
        assert np.allclose((other.astype(np.float64) - offset) / gain, refined, atol=2e-5)


def test_it_stays_within_the_range_of_the_score():
    score, logits, probabilities, image, _ = scene()
    image[::3] = 255  # edges that the score does not share
    refined = refine(score, logits, probabilities, image, ObjectSettings(edge_contrast=1e-6))
    assert score.min() <= refined.min() and refined.max() <= score.max()


@pytest.mark.parametrize('level', [0.0, -7.5, 1.0])
def test_a_flat_map_stays_flat(level):
    _, logits, probabilities, image, _ = scene()
    refined = refine(np.full(SHAPE, level, np.float32), logits, probabilities, image)
    assert (refined == np.float32(level)).all()


def test_pixels_that_no_mask_claims_keep_their_score():
    score, logits, probabilities, _, truth = scene()
    outside = ~(cv2.dilate(truth.astype(np.uint8), np.ones((13, 13))) > 0)
    nothing = ObjectSettings(closing=0, edge_radius=0)
    own = refine(score, np.zeros((0, *MASKS), np.float32), probabilities[:0], None, nothing)
    assert np.abs(own - cv2.resize(cv2.resize(
        score, MASKS[::-1], interpolation=cv2.INTER_AREA), SHAPE[::-1])).max() < 1e-6
    one = refine(score, np.float32(15) * logits[:1], probabilities[:1], None, nothing)
    assert np.abs(one - own)[outside].max() < 1e-3
    assert one[96, 120] == pytest.approx(one[88, 100], abs=1e-2)


def published_filter(score, guide, radius, contrast, grey):
    """Return the guided filter of He et al., window by window (eqs 5, 6 and 8), enlarged."""
    offsets = range(-radius, radius + 1)
    rows, columns = (np.clip(np.arange(n)[:, None] + offsets, 0, n - 1) for n in score.shape)
    slope, offset = np.empty(score.shape), np.empty(score.shape)
    for y, x in np.ndindex(score.shape):
        window = np.ix_(rows[y], columns[x])
        means = guide[window].mean(), score[window].mean()
        covariance = (guide[window] * score[window]).mean() - means[0] * means[1]
        slope[y, x] = covariance / (guide[window].var() + contrast)
        offset[y, x] = means[1] - slope[y, x] * means[0]
    for plane in (slope, offset):
        plane[...] = [[plane[np.ix_(r, c)].mean() for c in columns] for r in rows]
    return upsample_bilinear(slope, grey.shape) * grey + upsample_bilinear(offset, grey.shape)


@pytest.mark.parametrize('size', [(44, 60), (33, 45), (37, 52), (22, 30), (11, 15)])
def test_the_guided_filter_is_the_published_one(size):
    """Where the frame is enlarged by a whole factor and where it is not, and not at all."""
    random = np.random.default_rng(9)
    score, image = random.random(size, np.float32), random.integers(0, 256, size, dtype=np.uint8)
    settings = ObjectSettings(closing=0, edge_radius=2, edge_contrast=0.01)
    found = refine(score, np.zeros((0, 11, 15), np.float32), None, image, settings)
    low, guide = (cv2.resize(plane.astype(np.float64), (15, 11), interpolation=cv2.INTER_AREA)
                  for plane in (score, image))
    floor, ceiling = low.min(), low.max()
    expected = published_filter((low - floor) / (ceiling - floor), np.floor(guide + 0.5) / 255,
                                2, 0.01, image / 255.0)
    expected = floor + (ceiling - floor) * np.clip(expected, 0, 1)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize('size', [(1, 1), (5, 3), (97, 131), (30, 200)])
def test_any_size_of_the_score(size):
    _, logits, probabilities, image, _ = scene()
    score = np.random.default_rng(1).normal(size=size).astype(np.float32)
    refined = refine(score, logits, probabilities, image)
    assert refined.shape == size and np.isfinite(refined).all()


def test_saturated_masks_are_no_trouble():
    score, logits, probabilities, image, _ = scene()
    for extreme in (np.inf, -np.inf, 1e30, -1e30):
        refined = refine(score, np.full_like(logits, extreme), probabilities, image)
        assert np.isfinite(refined).all()


def test_it_is_deterministic_and_leaves_its_inputs_alone():
    inputs = scene()[:4]
    for array in inputs:
        array.setflags(write=False)
    assert np.array_equal(refine(*inputs), refine(*inputs))


@pytest.mark.parametrize('count', [0, 1, 3, 40])
def test_threads_change_nothing(count):
    """However many share the masks, and however few masks there are."""
    random = np.random.default_rng(8)
    masks = random.normal(0, 4, (count, 22, 30)).astype(np.float32)
    shares = random.dirichlet([0.3] * 4, count).astype(np.float32)[:, :3].reshape(count, 3)
    score, image = random.random((96, 130), np.float32), np.zeros((96, 130), np.uint8)
    with ThreadPoolExecutor() as pool:
        def share(work, items):
            list(pool.map(lambda item: work(0, range(item, item + 1)), items))

        spread = refine(score, masks, shares, image, share=share)
    np.testing.assert_array_equal(spread, refine(score, masks, shares, image))


def test_wrong_inputs_are_refused():
    score, logits, probabilities, image, _ = scene()
    for wrong in ((score[None], logits, probabilities, image),
                  (score.astype(np.uint8), logits, probabilities, image),
                  (score[:0], logits, probabilities, image),
                  (score, logits[0], probabilities, image),
                  (score, logits.astype(np.int32), probabilities, image),
                  (score, logits, probabilities[:1], image),
                  (score, logits, probabilities[0], image),
                  (score, logits, probabilities, image.astype(np.float32)),
                  (score, logits, probabilities, image[..., :2])):
        with pytest.raises(ValueError):
            refine(*wrong)
    for value in (np.nan, np.inf):
        broken = score.copy()
        broken[5, 7] = value
        with pytest.raises(ValueError, match='finite'):
            refine(broken, logits, probabilities, image)


@pytest.mark.parametrize('knob', [{'closing': -1}, {'edge_radius': -1}, {'no_object_vote': 1.1},
                                  {'no_object_vote': np.nan}, {'edge_contrast': 0.0},
                                  {'edge_contrast': np.inf}])
def test_wrong_settings_are_refused(knob):
    with pytest.raises(ValueError):
        ObjectSettings(**knob)


def test_components_of_real_frames_improve():
    folder = data_path('road_anomaly')
    bundle = load_bundle(default_bundle_path())
    engine = create_engine(bundle, threads=1)
    size = (bundle.input.height, bundle.input.width)
    raw, refined, labels = [], [], []
    for path in sorted((folder / 'images').glob('*.jpg'))[::5]:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        label = cv2.imread(str(folder / 'masks' / f'{path.stem}.png'), cv2.IMREAD_GRAYSCALE)
        output = engine.infer([Frame(image)])
        masks, probabilities = output.mask_logits[0], output.class_probabilities[0]
        score = read_out(masks, probabilities, size, label.shape,
                         ReadoutSettings(anomaly_threshold=0.5), 'anomaly_score').anomaly_score
        raw.append(score)
        refined.append(refine(score, masks, probabilities, image))
        labels.append(label)
    before = anomaly_metrics(raw, labels, track='anomaly')
    after = anomaly_metrics(refined, labels, track='anomaly')
    assert after['F1'] > 1.3 * before['F1']
    assert after['AP'] > before['AP']
