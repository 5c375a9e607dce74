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
"""Hard and soft masking of the queries: are they independent? (RbA 3.2 and C.1, figures 3, 9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import copy
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
import numpy as np
from owseg_training.analysis.run import frames, Run, write
from owseg_training.closed_set import class_scores
from owseg_training.data.datasets import DataSet
from owseg_training.evaluate.evaluation import comparison
from owseg_training.evaluate.metrics import ConfusionMatrix
from owseg_training.evaluate.tables import markdown_table
from owseg_training.figures import heat_map, save
import torch
from torch import nn
from torch.nn import functional

MODES = ('hard', 'soft', 'none')
TITLES = {'hard': 'hard masking', 'soft': 'soft masking', 'none': 'no masking'}
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Masking:
    """
    IoU of each class under each kind of masking, and the specialised query of each class.

    class_names: of IoU, those in which the run and the labels are compared; iou: kind of masking
    -> float64 [K']; queries: int64 [K] of the run's classes; frames: how many were seen.
    """

    class_names: tuple[str, ...]
    iou: dict[str, np.ndarray]
    queries: np.ndarray
    frames: int


def with_queries(decoder: nn.Module, queries: Sequence[int]) -> nn.Module:
    """
    Return the transformer decoder with a subset of its queries; it shares all other weights.

    The others take part in nothing: the subset attends to the image and to itself only.
    """
    shared = {id(p): p for p in (*decoder.parameters(), *decoder.buffers())}
    subset = copy.deepcopy(decoder, shared)
    for name in ('query_feat', 'query_embed'):
        if hasattr(decoder, name):
            weight = getattr(decoder, name).weight[list(queries)]
            setattr(subset, name, nn.Embedding.from_pretrained(weight))
    return subset.eval()


def specialised_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor,
                       queries: Sequence[int], size: Size) -> torch.Tensor:
    """
    Class scores L [K, height, width] where class k has the vote of its query alone.

    L_k = P[q_k, k] sigmoid(M[q_k]): eq 2 with a sum of one term.  class_logits [N, K+1],
    mask_logits [N, h, w].
    """
    masks = functional.interpolate(mask_logits[None, list(queries)], size=size, mode='bilinear',
                                   align_corners=False)[0]
    probability = class_logits.softmax(1)[list(queries), range(len(queries))]
    return probability[:, None, None] * masks.sigmoid()


class MaskedScores:
    """
    Class scores of a frame under each kind of masking; the image features are computed once.

    hard: the decoder runs once a class, with the class's specialised query alone.
    soft: the decoder runs with all queries, then class k has the vote of its specialised query.
    none: eq 2 over all queries.
    queries: int [K], the specialised query of each class.
    """

    def __init__(self, run: Run, queries: np.ndarray) -> None:
        self.run = run
        self.queries = [int(query) for query in queries]
        decoder = run.network.transformer_decoder
        self.alone = [with_queries(decoder, [query]) for query in self.queries]

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (kind of masking, L [K, h, w] at the network's size) of RGB uint8 [H, W, 3]."""
        network, size = self.run.network, self.run.size
        pyramid, features = network.pixel_decoder(network.backbone(self.run.stretch(image)))
        class_logits, mask_logits = (torch.cat(parts, 1)[0] for parts in zip(
            *(decoder(pyramid, features)[-1] for decoder in self.alone)))
        yield 'hard', specialised_scores(class_logits, mask_logits, range(len(self.queries)),
                                         size)
        class_logits, mask_logits = network.transformer_decoder(pyramid, features)[-1]
        yield 'soft', specialised_scores(class_logits[0], mask_logits[0], self.queries, size)
        yield 'none', class_scores(class_logits, mask_logits, size, network.num_classes)[0]


def masking(run: Run, data_set: DataSet, queries: np.ndarray,
            limit: int | None = None) -> Masking:
    """
    Measure the IoU of each class with hard, soft and no masking, at the size of the labels.

    queries: int [K], see specialisation.Specialisation.queries; choose them on other frames than
    these.  A pixel has the class with the largest score, as without masking.  Where the labels
    are of another label set, both are compared in their common classes.  Raises ClassMapError
    where nothing connects the two, ValueError for anything but one query for each class.
    """
    if len(queries) != run.network.num_classes:
        raise ValueError(f'{len(queries)} queries for {run.network.num_classes} classes')
    data_set, prediction_map, names = comparison(data_set, run.class_names)
    scores_of = MaskedScores(run, queries)
    matrices = {mode: ConfusionMatrix(len(names)) for mode in MODES}
    seen = 0
    for item in frames(data_set, limit, 'masking'):
        image, label = data_set.read(item)
        for mode, scores in scores_of(image):
            scores = functional.interpolate(scores[None], size=label.shape, mode='bilinear',
                                            align_corners=False)[0]
            ids = scores.argmax(0).cpu().numpy().astype(np.uint8)
            matrices[mode].add(ids if prediction_map is None else prediction_map(ids), label)
        seen += 1
    return Masking(names, {mode: matrix.iou() for mode, matrix in matrices.items()},
                   np.asarray(queries), seen)


def draw(result: Masking, title: str) -> Figure:
    """Draw the IoU as a strip of colours for each kind of masking, as in figure 3."""
    return heat_map(
        100 * np.stack([result.iou[mode] for mode in MODES]), [TITLES[mode] for mode in MODES],
        result.class_names, title, color_label='IoU (%)',
        size=(max(600, 120 + 82 * len(result.class_names)), 250), text='.1f', vmin=0, vmax=100)


def write_masking(result: Masking, run: Run, data_set: DataSet, chosen_on: Sequence[DataSet],
                  folder: str | Path) -> str:
    """Write masking.{json,md,png}; chosen_on: where the queries come from; returns Markdown."""
    own = dict(zip(run.class_names, result.queries))
    rows = [[name, str(own.get(name, '-')), *(f'{100 * result.iou[m][k]:.2f}' for m in MODES)]
            for k, name in enumerate(result.class_names)]
    means = {mode: float(np.nanmean(result.iou[mode])) for mode in MODES}
    rows.append(['**mean**', '', *(f'**{100 * means[mode]:.2f}**' for mode in MODES)])
    where = ', '.join(each.key for each in chosen_on)
    lines = [
        f'# Masking of the queries: {run.config.name} on {data_set.key}', '',
        f'IoU (%) over {result.frames} frames; the query of each class was chosen on {where}.', '',
        markdown_table(['class', 'its query', *(TITLES[mode] for mode in MODES)], rows),
        '![IoU](masking.png)']
    write(folder, 'masking', {
        'run': run.config.name, 'data_set': data_set.key, 'frames': result.frames,
        'queries_from': [each.key for each in chosen_on],
        'queries': {name: int(query) for name, query in own.items()}, 'mIoU': means,
        'IoU': {mode: dict(zip(result.class_names, (float(v) for v in result.iou[mode])))
                for mode in MODES}}, lines)
    save(draw(result, f'IoU when each class has one query: {run.config.name} on '
              f'{data_set.key}'), Path(folder) / 'masking.png')
    return '\n'.join(lines[:5])
