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
Objects instead of speckle: the anomaly score grouped by the network's own masks and by edges.

A pixel-wise score breaks an object into pieces and flags the seams between regions. Yet the same
network pass says which pixels belong together: its masks, those of queries that claim no object
included, which often outline what has no class. Three steps, at the resolution of the masks
(stride 4), after the score is averaged down to it:

1. Grey-scale closing fills the pinholes of an object.
2. Every mask q takes the mean score of its region, and every pixel the mean of its masks::

       m_q  = sum_x M_q(x) s(x) / sum_x M_q(x)
       s'(x) = (sum_q w_q M_q(x) m_q + e(x) s(x)) / (sum_q w_q M_q(x) + e(x))

   with M = sigmoid(mask logits), w_q = v + (1 - v) sum_k P_qk where v is the vote of a query that
   claims no object, and e a trace that leaves a pixel its own score where no mask claims it.
3. A guided filter with the frame's brightness (He, Sun, Tang, "Guided Image Filtering", PAMI
   2013; enlarged as in He, Sun, "Fast Guided Filter", 2015) brings back the edges at full
   resolution and evens out what is left of the speckle.

The result is clipped to the range of the input, and refine(a * score + b) is a * refine(score)
+ b for a > 0, so the scale stays. Yet means draw peaks towards their surroundings: calibrate a
threshold on refined maps, when it is used on refined maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Callable, Optional

import cv2
import numpy as np
from owseg_ros.compiled import compile_all
from owseg_ros.readout import kernels
from owseg_ros.readout.taps import Taps

# The weight e of a pixel's own score where no mask claims it: below that of a weak claim.
REST = 0.03


@dataclass(frozen=True)
class ObjectSettings:
    """
    The knobs of the refinement; lengths in pixels of the masks (stride 4 of the network).

    closing: radius of the closing of step 1, 0 for none.
    no_object_vote: weight v in [0, 1] of a query that claims no object, against one that is
        certain of its class.
    edge_radius: radius of the guided filter, 0 for none.
    edge_contrast: variance of brightness (of 0 to 1) in a window below which the filter smooths
        and above which it keeps the frame's edges; positive.
    """

    closing: int = 1
    no_object_vote: float = 0.2
    edge_radius: int = 2
    edge_contrast: float = 0.002

    def __post_init__(self):
        if self.closing < 0 or self.edge_radius < 0:
            raise ValueError(f'radii must be 0 or more, not {self.closing}, {self.edge_radius}')
        if not 0.0 <= self.no_object_vote <= 1.0:
            raise ValueError(f'no_object_vote must lie in [0, 1], not {self.no_object_vote}')
        if not (np.isfinite(self.edge_contrast) and self.edge_contrast > 0):
            raise ValueError(f'edge_contrast must be positive, not {self.edge_contrast}')


DEFAULTS = ObjectSettings()


# Step 2: from a score float32 [h, w], mask logits [N, h, w] and votes float32 [N] to s', [h, w].
Pool = Callable[[np.ndarray, Any, np.ndarray], np.ndarray]
# Runs work(worker, items) over all items, dealt out to workers.
Share = Callable[[Callable[[int, range], None], range], Any]


def _alone(work: Callable[[int, range], None], items: range) -> None:
    work(0, items)


# Groups of masks, and then of rows, that are worked on side by side. Their number is fixed, so
# that sums do not depend on that of the workers.
_GROUPS = 4

_taps = lru_cache(maxsize=16)(Taps.between)


def refine(score: np.ndarray, mask_logits: Any,
           probabilities: Optional[np.ndarray] = None, image: Optional[np.ndarray] = None,
           settings: ObjectSettings = DEFAULTS, pool: Optional[Pool] = None,
           share: Share = _alone) -> np.ndarray:
    """
    Return the anomaly score grouped into objects, float32 [H, W]; see the module's docstring.

    score: float [H, W], any score of any range, higher is stranger.
    mask_logits: float [N, h, w] of the same field of view, usually at stride 4; N may be 0.
    probabilities: float [N, K], the no-object column dropped; None lets all queries vote alike.
    image: the frame, uint8 [*, *, 3] or [*, *] of any size; RGB, but BGR will do. Without it a
        Gaussian stands in for the guided filter.
    pool: does step 2 where the mask logits are, such as on a GPU; None does it here. share:
    spreads what is done here over threads.

    No input is modified. Raises ValueError where shapes or dtypes disagree or the score is not
    finite; mask logits must not be nan.
    """
    score = np.asarray(score)
    if pool is None:
        mask_logits, pool = np.asarray(mask_logits), partial(_pool, share=share)
        _check_float(mask_logits)
    _check(score, mask_logits, probabilities, image)
    shape = tuple(mask_logits.shape[1:])
    low = _shrunk(score.astype(np.float32, copy=False), shape)
    floor, ceiling = (float(v) for v in cv2.minMaxLoc(low)[:2])
    if not (np.isfinite(low).all() and np.isfinite(ceiling - floor)):
        raise ValueError('the score must be finite')
    if ceiling <= floor:
        return np.full(score.shape, floor, np.float32)
    low -= np.float32(floor)
    low *= np.float32(1.0 / (ceiling - floor))
    if settings.closing:
        size = 2 * settings.closing + 1
        low = cv2.morphologyEx(low, cv2.MORPH_CLOSE,
                               cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    low = pool(low, mask_logits, _votes(len(mask_logits), probabilities, settings))
    return _enlarge(low, image, score.shape, settings, floor, ceiling, share)


def _check_float(mask_logits: np.ndarray) -> None:
    if not np.issubdtype(mask_logits.dtype, np.floating):
        raise ValueError(f'expected float mask logits [N, h, w], not {mask_logits.dtype}')


def _check(score, mask_logits, probabilities, image) -> None:
    if score.ndim != 2 or 0 in score.shape or not np.issubdtype(score.dtype, np.floating):
        raise ValueError(f'expected a float score [H, W], not {score.dtype} {score.shape}')
    if mask_logits.ndim != 3 or 0 in mask_logits.shape[1:]:
        raise ValueError(f'expected mask logits [N, h, w], not {tuple(mask_logits.shape)}')
    if probabilities is not None and (
            np.ndim(probabilities) != 2 or len(probabilities) != len(mask_logits)):
        raise ValueError(f'mask logits {mask_logits.shape} and class probabilities '
                         f'{np.shape(probabilities)} must agree in their number of queries')
    if image is not None and (image.dtype != np.uint8 or 0 in image.shape or not (
            image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f'expected an image uint8 [*, *, 3] or [*, *], not '
                         f'{image.dtype} {image.shape}')


def _votes(count: int, probabilities: Optional[np.ndarray],
           settings: ObjectSettings) -> np.ndarray:
    """Return w, float32 [N]."""
    if probabilities is None:
        return np.ones(count, np.float32)
    claims = np.asarray(probabilities, np.float32).sum(axis=1)
    return settings.no_object_vote + (1 - settings.no_object_vote) * claims


def _pool(score: np.ndarray, mask_logits: np.ndarray, votes: np.ndarray,
          share: Share) -> np.ndarray:
    """Return s' of step 2, float32 [h, w]."""
    compile_all()
    masks = np.ascontiguousarray(mask_logits, np.float32).reshape(len(mask_logits), score.size)
    votes = np.ascontiguousarray(votes, np.float32)
    own = score.ravel()
    sigmoid, weight, total = (np.empty((_GROUPS, score.size), np.float32) for _ in range(3))
    edges = [i * len(masks) // _GROUPS for i in range(_GROUPS + 1)]

    def work(worker: int, groups: range) -> None:
        for i in groups:
            part = slice(edges[i], edges[i + 1])
            kernels.pool_masks(masks[part], own, votes[part], sigmoid[i], weight[i], total[i])

    share(work, range(_GROUPS))
    weight, total = weight.sum(axis=0), total.sum(axis=0)
    rest = np.maximum(REST * (1 - weight), 1e-9)
    return ((total + rest * own) / (weight + rest)).reshape(score.shape)


def _shrunk(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a plane float32 or uint8 [H, W] averaged down to a shape."""
    if plane.shape[0] < shape[0] or plane.shape[1] < shape[1]:
        return cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_AREA)
    # Several times as fast as OpenCV where the sizes have no whole factor.
    compile_all()
    small = np.empty(shape, plane.dtype)
    shrink = kernels.shrink_bytes if plane.dtype == np.uint8 else kernels.shrink
    shrink(np.ascontiguousarray(plane), small)
    return small


def _enlarge(score: np.ndarray, image: Optional[np.ndarray], shape: tuple[int, int],
             settings: ObjectSettings, floor: float, ceiling: float,
             share: Share) -> np.ndarray:
    """Return step 3 of a score [h, w] in 0..1, stretched to floor..ceiling, float32 [H, W]."""
    radius = settings.edge_radius
    if not radius or image is None:
        if radius:
            score = cv2.GaussianBlur(score, (0, 0), radius / 2, borderType=cv2.BORDER_REPLICATE)
        full = cv2.resize(score, shape[::-1], interpolation=cv2.INTER_LINEAR)
        np.clip(full, 0.0, 1.0, out=full)
        full *= np.float32(ceiling - floor)
        full += np.float32(floor)
        return full
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if grey.shape != shape:
        grey = cv2.resize(grey, shape[::-1], interpolation=cv2.INTER_AREA)
    lines = _local_lines(score, _shrunk(grey, score.shape), radius, settings.edge_contrast)
    grey = np.ascontiguousarray(grey)
    full = np.empty(shape, np.float32)
    down, across = (_taps(*sizes) for sizes in zip(score.shape, shape))
    edges = [i * len(full) // _GROUPS for i in range(_GROUPS + 1)]

    def work(worker: int, groups: range) -> None:
        wide = np.empty((2, 2, shape[1]), np.float32)
        for i in groups:
            rows = slice(edges[i], edges[i + 1])
            kernels.apply_guide(
                lines, grey[rows], *down.part(rows.start, rows.stop).arrays, *across.arrays,
                across.phases, ceiling - floor, floor, wide, full[rows])

    share(work, range(_GROUPS))
    return full


def _local_lines(score: np.ndarray, guide: np.ndarray, radius: int,
                 contrast: float) -> np.ndarray:
    """
    Return slope and offset of the line from brightness to score at each pixel, [2, h, w].

    score: float32 [h, w]; guide: uint8 [h, w], brightness; eqs 5, 6 and 8 of He et al.
    """
    guide = guide.astype(np.float32)
    guide *= np.float32(1 / 255)

    def mean(plane):
        return cv2.blur(plane, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REPLICATE)

    mean_guide, mean_score = mean(guide), mean(score)
    covariance = mean(guide * score) - mean_guide * mean_score
    variance = np.maximum(mean(guide * guide) - mean_guide * mean_guide, 0)
    slope = covariance / (variance + np.float32(contrast))
    return np.stack([mean(slope) * np.float32(1 / 255), mean(mean_score - slope * mean_guide)])
