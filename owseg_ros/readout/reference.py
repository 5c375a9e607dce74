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
The readout in plain numpy, equation by equation. Every faster path is tested against it.

Source: Nayal, Yavuz, Henriques, Guney, "RbA: Segmenting Unknown Regions Rejected by All"
(ICCV 2023), equations 2 to 5. Orders of operation that the paper leaves open are those of the
authors' published code: mask logits are upsampled bilinearly to the network's input size before
the sigmoid, class probabilities are a softmax over K + 1 columns whose last ("no object") is
dropped without renormalising, and the scores L are resampled to the output size before tanh or
argmax are applied.

All functions compute in the dtype of their input; pass float64 for a yardstick.
"""

from __future__ import annotations

from collections import deque
from typing import Optional

import numpy as np
from owseg_ros.bundle import ClassStatistics
from owseg_ros.readout.maps import (
    ALL_MAPS, check_maps, Maps, NO_QUERY, ReadoutSettings, ScoreRegions, UNKNOWN_ID, UNLABELLED_ID)
from owseg_ros.readout.taps import interpolation_taps


def interpolation_matrix(size_in: int, size_out: int) -> np.ndarray:
    """
    Return the float64 [size_out, size_in] matrix of linear resampling along one axis.

    Every row has at most two entries (`interpolation_taps`), is non-negative and sums to one.
    """
    low, high, fraction = interpolation_taps(size_in, size_out)
    matrix = np.zeros((size_out, size_in))
    rows = np.arange(size_out)
    np.add.at(matrix, (rows, low), 1.0 - fraction)
    np.add.at(matrix, (rows, high), fraction)
    return matrix


def upsample_bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Resample maps [..., h, w] bilinearly to [..., H, W] with size = (H, W).

    ``align_corners=False`` with edge clamping and no antialiasing: the same values as
    ``torch.nn.functional.interpolate(mode='bilinear')`` and ``cv2.resize(INTER_LINEAR)``.
    """
    maps = np.asarray(maps)
    rows = interpolation_matrix(maps.shape[-2], size[0]).astype(maps.dtype)
    columns = interpolation_matrix(maps.shape[-1], size[1]).astype(maps.dtype)
    return rows @ maps @ columns.T


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)) without overflow, elementwise; exact to its last digits."""
    logits = np.asarray(logits)
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, logits.dtype.type(1), small) / (1 + small)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    logits = np.asarray(logits)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def class_probabilities(class_logits: np.ndarray) -> np.ndarray:
    """
    Return P [..., N, K] from class logits [..., N, K + 1] (RbA section 3.1).

    Softmax over all K + 1 columns, then the last one ("no object") is dropped. The rows are not
    renormalised: a query that claims no object votes for no class.
    """
    return softmax(class_logits)[..., :-1]


def class_scores(mask_logits: np.ndarray, probabilities: np.ndarray,
                 network_size: tuple[int, int],
                 output_size: Optional[tuple[int, int]] = None) -> np.ndarray:
    """
    Return L [K, H, W], the class scores of each pixel (RbA eq. 2).

    L_k(x) = sum_q P_qk * sigmoid(M_q(x)): the mask logits [N, h, w] are resampled to
    network_size = (H, W) *before* the sigmoid, and L is resampled to output_size afterwards when
    that differs. L is not negative and may exceed 1 where masks overlap.
    """
    masks = sigmoid(upsample_bilinear(mask_logits, network_size))
    scores = np.einsum('qk,qyx->kyx', probabilities, masks)
    if output_size is not None and tuple(output_size) != tuple(network_size):
        scores = upsample_bilinear(scores, output_size)
    return scores


def rba(scores: np.ndarray) -> np.ndarray:
    """
    Return the anomaly score 1 - sum_k tanh(L_k) of scores [K, H, W] (RbA eqs 3 to 5).

    Each class is a one-vs-all classifier whose probability of acceptance is tanh(L_k) in [0, 1)
    (eqs 3 and 4), and a pixel is an outlier to the degree that all of them reject it (eq. 5).
    The paper drops the constant; with it the score lies in [1 - K, 1] and is 1 where no class
    claims the pixel.
    """
    return 1.0 - np.tanh(scores).sum(axis=0)


def anomaly_score(name: str, mask_logits: np.ndarray, probabilities: np.ndarray,
                  network_size: tuple[int, int], output_size: tuple[int, int],
                  statistics: Optional[ClassStatistics] = None,
                  outlier: Optional[np.ndarray] = None) -> np.ndarray:
    """
    Return the anomaly score [H, W] called ``name``; the equations are those of readout.scores.

    mask_logits: [N, h, w]; probabilities: [N, K]; sizes are (height, width); statistics: for
    standardized_max_logit; outlier: [N], probability of the outlier class, for uno.
    """
    def weigh(column):
        return class_scores(mask_logits, column[:, None], network_size, output_size)[0]

    if name == 'eam':
        return 1.0 - weigh(probabilities.max(axis=1))
    if name == 'uno':
        return weigh(outlier) - weigh(probabilities.max(axis=1))
    scores = class_scores(mask_logits, probabilities, network_size, output_size)
    if name == 'rba':
        return rba(scores)
    if name == 'rba_exponential':
        return 1.0 - (1.0 - np.exp(-scores)).sum(axis=0)
    if name == 'rba_softsign':
        return 1.0 - (scores / (1.0 + scores)).sum(axis=0)
    if name == 'rba_clipped':
        return 1.0 - np.minimum(scores, 1.0).sum(axis=0)
    if name == 'max_logit':
        return -scores.max(axis=0)
    if name == 'standardized_max_logit':
        best = scores.argmax(axis=0)
        return -(scores.max(axis=0) - np.array(statistics.mean)[best]) / np.array(
            statistics.std)[best]
    posterior = np.moveaxis(softmax(np.moveaxis(scores, 0, -1)), -1, 0)
    if name == 'msp':
        return 1.0 - posterior.max(axis=0)
    if name == 'entropy':
        return -(posterior * np.log(posterior)).sum(axis=0)
    if name == 'energy':
        return -np.log(np.exp(scores).sum(axis=0))
    raise ValueError(f'no anomaly score is called {name!r}')


def semantic(scores: np.ndarray) -> np.ndarray:
    """Return argmax_k L_k as uint8 [H, W]; the lowest id wins a tie."""
    return np.argmax(scores, axis=0).astype(np.uint8)


def confidence(scores: np.ndarray) -> np.ndarray:
    """Return round(255 * clip(max_k L_k, 0, 1)) as uint8 [H, W]."""
    return np.rint(255.0 * np.clip(scores.max(axis=0), 0.0, 1.0)).astype(np.uint8)


def query_mask(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    Return the winning query of each pixel, uint8 [H, W], 255 where there is none.

    Of the queries whose score L_q [Q, H, W] is at or above their threshold [Q] the one with the
    highest wins, the first one on a tie; scores that exceed 1 are compared as they are.
    """
    if not len(scores):
        return np.full(scores.shape[1:], NO_QUERY, np.uint8)
    reaching = np.where(scores >= np.reshape(thresholds, (-1, 1, 1)), scores, -np.inf)
    winner = reaching.argmax(axis=0).astype(np.uint8)
    winner[np.isneginf(reaching.max(axis=0))] = NO_QUERY
    return winner


def query_score(scores: np.ndarray) -> np.ndarray:
    """Return max_q L_q of [Q, H, W], cut at 1, as float32 [H, W]; 0 without queries."""
    return np.minimum(scores.max(axis=0, initial=0.0), 1.0).astype(np.float32)


def _components(mask: np.ndarray, diagonal: bool):
    """Yield each connected component of a boolean [H, W] mask as an array [n, 2] of (y, x)."""
    steps = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    if diagonal:
        steps += [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    height, width = mask.shape
    waiting = mask.copy()
    for seed in np.argwhere(mask):
        if not waiting[tuple(seed)]:
            continue
        waiting[tuple(seed)] = False
        queue, pixels = deque([tuple(seed)]), []
        while queue:
            y, x = queue.popleft()
            pixels.append((y, x))
            for dy, dx in steps:
                v, u = y + dy, x + dx
                if 0 <= v < height and 0 <= u < width and waiting[v, u]:
                    waiting[v, u] = False
                    queue.append((v, u))
        yield np.array(pixels)


def clean_mask(mask: np.ndarray, min_area: int) -> np.ndarray:
    """
    Return mask without specks and pinholes, uint8 [H, W] of 0 and 255.

    First the 8-connected components below min_area pixels are removed, then the holes below
    min_area are filled. A hole is a 4-connected piece of background which does not touch the
    border of the image.
    """
    cleaned = np.asarray(mask) != 0
    for pixels in _components(cleaned, diagonal=True):
        if len(pixels) < min_area:
            cleaned[pixels[:, 0], pixels[:, 1]] = False
    last = np.array(cleaned.shape) - 1
    for pixels in _components(~cleaned, diagonal=False):
        enclosed = (pixels > 0).all() and (pixels < last).all()
        if enclosed and len(pixels) < min_area:
            cleaned[pixels[:, 0], pixels[:, 1]] = True
    return cleaned.astype(np.uint8) * 255


def read_out(mask_logits: np.ndarray, probabilities: np.ndarray, network_size: tuple[int, int],
             output_size: tuple[int, int], settings: ReadoutSettings, maps=ALL_MAPS,
             outlier: Optional[np.ndarray] = None, query_weights: Optional[np.ndarray] = None,
             query_thresholds: Optional[np.ndarray] = None,
             score_regions: Optional[ScoreRegions] = None) -> Maps:
    """
    Return the Maps of one frame, computed by the functions above one after the other.

    mask_logits: [N, h, w]; probabilities: [N, K]; sizes are (height, width); outlier: [N];
    query_weights: [N, Q] with their thresholds [Q], None for no queries; score_regions: raises
    L_q inside anomalous regions.
    Objects, hysteresis and the road have no second implementation here: raises ValueError for
    settings with one of them.
    """
    maps = check_maps(maps)
    plain = (settings.objects, settings.hysteresis, settings.confirm_frames,
             settings.hold_frames, settings.road)
    if plain != (None, 0, 1, 0, None):
        raise ValueError('the reference has no objects, hysteresis or road')
    size = settings.evaluation_size(network_size)
    scores = class_scores(mask_logits, probabilities, size, output_size)
    score = anomaly_score(settings.score.name, mask_logits, probabilities, size,
                          output_size, getattr(settings.score, 'statistics', None), outlier)
    mask = clean_mask(score >= settings.anomaly_threshold,
                      settings.scaled_min_area(network_size, output_size))
    ids = semantic(scores)
    ids[scores.max(axis=0) < settings.min_confidence] = UNLABELLED_ID
    if settings.mark_unknown:
        ids[mask != 0] = UNKNOWN_ID
    found = {'semantic': ids, 'confidence': confidence(scores),
             'anomaly_score': score.astype(np.float32), 'anomaly_mask': mask}
    if query_weights is None:
        query_weights, query_thresholds = probabilities[:, :0], np.empty(0)
    scores = class_scores(mask_logits, query_weights, size, output_size)
    for region in score_regions(mask) if score_regions and len(scores) else ():
        inside = np.zeros(mask.shape, bool)
        inside[region.window] = region.inside
        scores = np.where(inside, np.maximum(scores, region.scores[:, None, None]), scores)
    found |= {'query_mask': query_mask(scores, query_thresholds),
              'query_score': query_score(scores)}
    return Maps(**{name: value for name, value in found.items() if name in maps})
