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

"""Uncertainty-based region separation, URS (RAML 3.2)."""

from __future__ import annotations

import cv2
import numpy as np
from owseg_ros.readout.components import label_components, paint_components
from owseg_training.config import ConfigError
from owseg_training.regions import connected_regions, Frame

UNCERTAINTIES = ('softmax', 'share')


def sobel(image: np.ndarray) -> np.ndarray:
    """Return the magnitude of the grey gradient of RGB uint8 [H, W, 3], float32 (3x3 Sobel)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def uncertainty(scores: np.ndarray, kind: str = 'softmax') -> np.ndarray:
    """
    Return the uncertainty 1 - max_k p_k of scores float [K, H, W], float32 [H, W] in 0..1.

    kind: softmax, p = softmax(U), the paper's; share, p = U / sum_k U, for scores that are no
    logits: a mask classifier's lie about in 0..1, so that their softmax is flat.  Pixels that no
    class claims are then entirely uncertain.
    """
    if kind == 'share':
        total = scores.sum(0)
        best = scores.max(0)
        return (1 - np.divide(best, total, out=np.zeros_like(best), where=total > 1e-6)).astype(
            np.float32)
    powers = np.exp(scores - scores.max(0))
    return (1 - 1 / powers.sum(0)).astype(np.float32)


class UncertaintyRegions:
    """
    URS: E = [Sobel(X) >= alpha or 1 - MSP(U) >= beta] parts the regions (RAML eq 2).

    The paper writes MSP(U) >= beta, but edges have a low MSP, so it must mean the uncertainty.
    alpha: of the gradient of the grey picture, 0..255 (the paper: 50 for Lost and Found, 150 for
    Road Anomaly); beta: 0.7 and 0.4 there; kind: see uncertainty.
    max_hole: specks of edge up to so many pixels inside of a region are filled; the paper states
    no size, and filling holes of every size would merge objects with what surrounds them.
    min_area: smaller regions, in pixels, are left out.
    Regions are 4-connected, edges 8-connected: a diagonal edge parts what lies beside it.
    Raises ConfigError for an unknown kind.
    """

    def __init__(self, alpha: float = 150.0, beta: float = 0.4, kind: str = 'softmax',
                 max_hole: int = 16, min_area: int = 64) -> None:
        if kind not in UNCERTAINTIES:
            raise ConfigError(f'unknown uncertainty {kind!r}; known: {", ".join(UNCERTAINTIES)}')
        self.alpha = alpha
        self.beta = beta
        self.kind = kind
        self.max_hole = max_hole
        self.min_area = min_area

    def edges(self, image: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return E, bool [H, W], of RGB uint8 [H, W, 3] and U, float [K, H, W]."""
        return (sobel(image) >= self.alpha) | (uncertainty(scores, self.kind) >= self.beta)

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return the regions, int32 [H, W]; 0 on the edges between them."""
        edges = self.edges(frame.image, frame.scores).astype(np.uint8)
        labels, stats = label_components(edges, connectivity=8)
        left, top, width, height, area = stats.T
        holes = ((area <= self.max_hole) & (left > 0) & (top > 0)
                 & (left + width < edges.shape[1]) & (top + height < edges.shape[0]))
        holes[0] = False
        paint_components(edges, labels, stats, holes, 0)
        return connected_regions(1 - edges, self.min_area, connectivity=4)
