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
"""Specialisation of the queries: which query predicts which class (RbA C.1, figure 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
import numpy as np
from owseg_training.analysis.run import frames, Run, write
from owseg_training.data.datasets import DataSet, read_image
from owseg_training.evaluate.tables import markdown_table
from owseg_training.figures import heat_map, save
import torch

THRESHOLD = 0.8


@dataclass(frozen=True, eq=False)
class Specialisation:
    """
    How often each query predicts each class.

    counts: int64 [N, K], frames in which query n predicts class k with high confidence; mass:
    float64 [N, K], the probability of k summed over the frames where n has a region; frames:
    how many were seen; threshold: what confidence counts as high.
    """

    counts: np.ndarray
    mass: np.ndarray
    frames: int
    threshold: float

    def queries(self) -> np.ndarray:
        """
        Return int64 [K]: the specialised query of each class.

        It is the query with the largest count; ties, also where no query is ever confident of a
        class, go to the larger mass.
        """
        best = self.counts == self.counts.max(0)
        return np.where(best, self.mass, -1.0).argmax(0)

    def dominance(self) -> np.ndarray:
        """Return float64 [K]: the specialised query's share of its class's counts, or nan."""
        total = self.counts.sum(0)
        return np.where(total > 0, self.counts.max(0) / np.maximum(total, 1), np.nan)


def confident_queries(class_logits: torch.Tensor, mask_logits: torch.Tensor, threshold: float,
                      num_classes: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return what a frame adds to the counts, bool [N, K], and to the mass, float [N, K].

    class_logits [N, K+1], mask_logits [N, h, w]; num_classes: K, where class_logits have an
    outlier column too.  Query n predicts a region of class k with high confidence where k is the
    most probable of all columns, its probability reaches the threshold, and the region is not
    empty: sigmoid(M_n) > 0.5 somewhere.
    """
    known = class_logits.shape[1] - 1 if num_classes is None else num_classes
    probability = class_logits.softmax(1)
    region = (mask_logits.flatten(1).amax(1) > 0)[:, None]
    top, winner = probability.max(1)
    confident = (winner[:, None] == torch.arange(known, device=winner.device)) & (
        top >= threshold)[:, None] & region
    return confident, probability[:, :known] * region


@torch.inference_mode()
def specialisation(run: Run, data_sets: Sequence[DataSet], threshold: float = THRESHOLD,
                   limit: int | None = None) -> Specialisation:
    """
    Count over all frames of the sets; their labels are not used.

    threshold: see confident_queries.  The paper does not state its own; 0.8 is the confidence
    from which Mask2Former keeps a region in panoptic inference.  The paper counts on a data set
    other than that of the training (BDD100K).
    """
    shape = (run.config.network.queries, run.network.num_classes)
    counts, mass, seen = np.zeros(shape, np.int64), np.zeros(shape), 0
    for data_set in data_sets:
        for item in frames(data_set, limit, 'queries'):
            prediction = run.network(run.stretch(read_image(item.image)))
            confident, probability = confident_queries(
                prediction.class_logits[0], prediction.mask_logits[0], threshold,
                run.network.num_classes)
            counts += confident.cpu().numpy()
            mass += probability.double().cpu().numpy()
            seen += 1
    return Specialisation(counts, mass, seen, threshold)


def rows_of(result: Specialisation, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each class: its query, how often, and who else predicts it."""
    rows = []
    for k, (name, query) in enumerate(zip(names, result.queries())):
        column = result.counts[:, k]
        others = [int(n) for n in np.argsort(-column, kind='stable')
                  if n != query and column[n] > 0]
        other_classes = np.delete(result.counts[query], k)
        rows.append({
            'class': name, 'query': int(query), 'count': int(column[query]),
            'dominance': float(result.dominance()[k]),
            'others': {str(n): int(column[n]) for n in others},
            'other_classes': int(other_classes.sum())})
    return rows


def draw(result: Specialisation, names: Sequence[str], title: str) -> Figure:
    """Draw the counts of all queries, classes below each other, on a logarithmic scale."""
    counts = result.counts.T.astype(float)
    queries = counts.shape[1]
    step = max(1, round(queries / 20))
    figure = heat_map(
        np.where(counts > 0, counts, np.nan), names, [''] * queries, title, '', 'query',
        'confident predictions', (1000, 90 + 30 * len(names)), cmap='viridis',
        norm=LogNorm(1, max(2, counts.max())))
    shown = range(0, queries, step)
    figure.axes[0].set_xticks(shown, [str(n) for n in shown])
    return figure


def write_specialisation(result: Specialisation, run: Run, data_sets: Sequence[DataSet],
                         folder: str | Path) -> str:
    """Write specialisation.{json,md,png}; returns the Markdown."""
    names = run.class_names
    rows = rows_of(result, names)
    where = ', '.join(data_set.key for data_set in data_sets)
    used = np.flatnonzero(result.counts.any(1))
    lines = [
        f'# Specialisation of the queries: {run.config.name} on {where}', '',
        f'{result.frames} frames; a count is a frame in which the query predicts a region of the '
        f'class with a probability of at least {result.threshold:g}. {used.size} of '
        f'{len(result.counts)} queries ever do.', '',
        markdown_table(
            ['class', 'its query', 'count', 'share of the class', 'other queries (count)',
             'other classes of the query'],
            [[row['class'], str(row['query']), str(row['count']),
              '-' if np.isnan(row['dominance']) else f'{row["dominance"]:.1%}',
              ', '.join(f'{n} ({count})' for n, count in list(row['others'].items())[:5]) or '-',
              str(row['other_classes'])] for row in rows]),
        '![counts](specialisation.png)', '', '## Counts', '',
        markdown_table(['query', *names],
                       [[str(n), *(str(count or '') for count in result.counts[n])]
                        for n in used])]
    write(folder, 'specialisation', {
        'run': run.config.name, 'data_sets': [data_set.key for data_set in data_sets],
        'frames': result.frames, 'threshold': result.threshold, 'classes': rows,
        'class_names': list(names), 'counts': result.counts.tolist()}, lines)
    save(draw(result, names, f'Confident predictions of each query: {run.config.name} on '
              f'{where}, {result.frames} frames'), Path(folder) / 'specialisation.png')
    return '\n'.join(lines[:6])
