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

"""Meta-channel aggregation, MCA: few-shot labels choose meta channels, which make the regions."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from owseg_training.regions import connected_regions, Frame, resize_regions
from scipy import ndimage

# What the released code needs of its pixels at stride 4, and the square that it closes gaps with.
RELEASED_MIN_AREA = 250
CLOSING = np.ones((5, 5), np.uint8)


def candidate_channels(meta: np.ndarray, mask: np.ndarray, kappa: float = 0.1,
                       inside: bool = True) -> np.ndarray:
    """
    Return which meta channels have enough of a labelled object, bool [K] (RAML eq 13).

    A channel is a candidate where sum c / sum y > kappa, with c = [C >= 0.5].
    meta: float [K, h, w], 0..1; mask: y, bool [h, w] of the novel class.
    inside: count c within y alone, as in the released code (with kappa 0.15); as printed, a
    channel that is busy anywhere else is a candidate too.
    Raises ValueError for an empty mask or one of another size.
    """
    if meta.shape[1:] != mask.shape:
        raise ValueError(f'the mask {mask.shape} is not of the size of the channels '
                         f'{meta.shape[1:]}')
    area = np.count_nonzero(mask)
    if not area:
        raise ValueError('the mask of the shot is empty; choose a picture that shows the class')
    active = meta >= 0.5
    if inside:
        active = active & mask
    return active.reshape(len(meta), -1).sum(1) / area > kappa


def select_channels(shots: Sequence[tuple[np.ndarray, np.ndarray]], kappa: float = 0.1,
                    inside: bool = True) -> np.ndarray:
    """
    Return the candidates of all shots together, bool [K] (RAML eq 14).

    shots: (meta channels, mask) of each labelled picture, of every novel class.  Raises
    ValueError without a shot, and as candidate_channels does.
    """
    if not shots:
        raise ValueError('meta channels are chosen by labelled pictures, and there is none')
    return np.any([candidate_channels(meta, mask, kappa, inside) for meta, mask in shots], axis=0)


def aggregate(meta: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """
    Return C_out = 1 - prod (1 - c_j) over the chosen channels, bool [h, w] (RAML eq 15).

    The text calls it an exclusive disjunction; the formula is the inclusive one.
    meta: float [K, h, w]; chosen: bool [K]; c_j = [C_j >= 0.5].
    """
    return (meta[chosen] >= 0.5).any(0)


class MetaChannelRegions:
    """
    Regions of the chosen meta channels.

    chosen: bool [K], see select_channels.
    post_processing: 'paper', holes are filled; 'code', gaps are closed by a 5x5 square instead.
    Either way the connected components are the regions. min_area: smaller ones, in pixels of the
    channels, are left out; the released code has RELEASED_MIN_AREA at stride 4 of 2048x1024.
    Frames must have meta channels.
    """

    def __init__(self, chosen: np.ndarray, post_processing: str = 'paper',
                 min_area: int = 16) -> None:
        if post_processing not in ('paper', 'code'):
            raise ValueError(f'post_processing must be paper or code, not {post_processing!r}')
        self.chosen = np.asarray(chosen, bool)
        self.post_processing = post_processing
        self.min_area = min_area

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return the regions, int32 [H, W]: of the channels, enlarged to the nearest pixel."""
        if frame.meta is None:
            raise ValueError('the frame has no meta channels')
        mask = aggregate(frame.meta, self.chosen)
        if self.post_processing == 'paper':
            mask = ndimage.binary_fill_holes(mask)
        else:
            mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, CLOSING)
        regions = connected_regions(mask.astype(np.int32), self.min_area)
        return resize_regions(regions, frame.image.shape[:2])
