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
"""`owseg run`: a bundle over a video, a folder, an image, a webcam or the street, without ROS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
import json
from pathlib import Path
import time
from typing import Any

import cv2
import numpy as np
from owseg_ros.bundle import Bundle, default_bundle_path
from owseg_ros.engine import TorchOptions
from owseg_ros.errors import OwsegError
from owseg_ros.language import (
    LanguageError, load_vocabulary, PreparedQueries, QueryBook, QueryScorer, RegionNamer)
from owseg_ros.language.installed import default_text_encoder_path, open_text_encoder
from owseg_ros.language.naming import UNKNOWN
from owseg_ros.novelty import prepare, PreparedPrototypes, PrototypeBook
from owseg_ros.operating_point import OperatingPointError
from owseg_ros.pictures import FrameComposer, panel_size, QueryPicture, VideoWriter
from owseg_ros.readout import ALL_MAPS, MaskHistory, QUERY_MAPS
from owseg_ros.render import distinct_colors
from owseg_ros.segmenter import readout_settings, REGIONS, Segmentation, Segmenter
from owseg_ros.source import open_source, SceneSource, Source, UnreadableImageError
from owseg_ros.street_score import StreetScore


class RunError(OwsegError):
    """A run that cannot deliver its results; the message says what to do."""


@dataclass(frozen=True)
class RunOptions:
    """
    What to segment and what to keep.

    source: as for owseg_ros.source.open_source; model: folder of a bundle, None for the default;
    out: folder of the results; every: take each n-th frame; limit: frames at most, 0 for all;
    masks: also write each frame's maps as PNG (ids, masks) and NPY (scores);
    query: what to ask for in words, as the topic takes it (language.queries), '' for nothing;
    text_encoder: folder of the encoder, None for the installed one; query_threshold: of queries
    that state none, None for the model's; vocabulary: file with wordings, None for the built-in;
    name_unknown: give anomalous regions names of the vocabulary, written to regions.jsonl;
    prototypes: file of taught classes (novelty.PrototypeBook), None for none; with masks they are
    listed in maps/taught.json; prototype_threshold: least cosine of those that have none of their
    own, None for the model's; prototype_masks: compare the network's masks with them too;
    engine, providers, threads, torch: as for owseg_ros.engine.create_engine; readout_on: where
    maps are made, see readout.choice.
    readout: keyword arguments of owseg_ros.segmenter.readout_settings; what the anomaly mask
    remembers goes from frame to frame.
    """

    source: str
    model: Path | None = None
    out: Path = Path('out')
    every: int = 1
    limit: int = 0
    masks: bool = False
    query: str = ''
    text_encoder: Path | None = None
    query_threshold: float | None = None
    vocabulary: Path | None = None
    name_unknown: bool = False
    prototypes: Path | None = None
    prototype_threshold: float | None = None
    prototype_masks: bool = False
    engine: str = 'onnx'
    providers: tuple[str, ...] = ('cpu',)
    threads: int = 0
    torch: TorchOptions | None = None
    readout_on: str = 'auto'
    readout: Mapping[str, Any] = field(default_factory=dict)


def run(options: RunOptions,
        progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """
    Segment a source; write out/run.mp4 and, when asked, the maps; return the figures.

    Frames of the procedural street are compared with its ground truth. Images of a folder that
    cannot be read are passed over; `unreadable` of the figures says what is wrong with each.

    progress: told the frames done and the frames in all (0 where that is not known).
    Raises RunError, SourceError, BundleError, EngineError, VideoError, ScoreError, OSError where
    out cannot be written, for queries LanguageError, TextEncoderError or VocabularyError, and for
    prototypes NoveltyError.
    """
    if options.every < 1:
        raise RunError(f'every must be 1 or more, not {options.every}')
    if options.limit < 0:
        raise RunError(f'limit must be 0 (all frames) or more, not {options.limit}')
    segmenter = _open_segmenter(options)
    queries, namer = open_language(segmenter.bundle, options)
    taught = open_prototypes(segmenter.bundle, options)
    maps = ALL_MAPS | (QUERY_MAPS if queries else set()) | ({REGIONS} if namer else set())
    history = MaskHistory()
    source = open_source(options.source)
    limit = options.limit or (0 if source.frames else 150)
    total = -(-source.frames // options.every) if source.frames else limit
    total = min(total, limit) if limit else total
    street = StreetScore(segmenter.bundle.class_names) if isinstance(source, SceneSource) else None
    segmenter.warm_up()
    results = _Results(options, segmenter.bundle, source.fps, queries, taught)
    unreadable: list[str] = []
    start = time.perf_counter()
    try:
        for index, frame in _frames(source, options.every, limit, unreadable):
            result, = segmenter.segment(
                [frame], maps, histories=[history], queries=queries, namer=namer, taught=taught)
            results.add(index, frame, result)
            if street is not None:
                street.add(source.truth, result.semantic, result.anomaly_mask)
            progress(results.frames, total)
    finally:
        segmenter.close()
        source.close()
        results.close()
    if not results.frames:
        raise RunError('; '.join([f'{options.source} gave no frame', *unreadable]))
    results.write_listings()
    return {
        **results.figures(),
        'unreadable': unreadable,
        'seconds': time.perf_counter() - start,
        'engine': segmenter.engine.description,
        'readout_on': segmenter.readout.description,
        'model': f'{segmenter.bundle.name} {segmenter.bundle.version}',
        'anomaly_score': segmenter.settings.score.name,
        'anomaly_threshold': segmenter.settings.anomaly_threshold,
        'ground_truth': None if street is None else street.figures()}


def _open_segmenter(options: RunOptions) -> Segmenter:
    segmenter = Segmenter(options.model or default_bundle_path(), options.engine,
                          options.providers, options.threads, torch=options.torch,
                          readout=options.readout_on)
    try:
        segmenter.settings = readout_settings(segmenter.bundle, **options.readout)
    except OperatingPointError as error:
        raise RunError(f'the threshold {error}') from error
    except OwsegError:
        raise
    except ValueError as error:
        raise RunError(str(error)) from error
    return segmenter


def _frames(source: Source, every: int, limit: int,
            unreadable: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """
    Yield each n-th frame with its index, so many at most (0: all).

    unreadable: what is wrong with images that are passed over is added to it.
    """
    index = taken = 0
    while not limit or taken < limit:
        try:
            frame = source.read()
        except UnreadableImageError as error:
            unreadable.append(str(error))
            index += 1
            continue
        if frame is None:
            return
        if index % every == 0:
            taken += 1
            yield index, frame
        index += 1


class _Results:
    """
    What a run leaves: video, maps and listings, written as frames come, and its figures.

    fps: of the source, 0 where it has none.
    """

    def __init__(self, options: RunOptions, bundle: Bundle, fps: float,
                 queries: PreparedQueries | None, taught: PreparedPrototypes | None) -> None:
        self._options, self._bundle = options, bundle
        self._queries, self._taught = queries, taught
        self._colors = distinct_colors(len(queries)) if queries else ()
        self._fps = (fps or 10.0) / options.every
        self._composer: FrameComposer | None = None
        self._writer: VideoWriter | None = None
        self._times: list[tuple[float, float, float]] = []
        self._flagged: list[float] = []
        self._query_shares: list[list[float]] = []
        self._taught_shares: list[list[float]] = []
        self._regions: list[str] = []

    @property
    def frames(self) -> int:
        """Return how many frames were added."""
        return len(self._times)

    def add(self, index: int, frame: np.ndarray, result: Segmentation) -> None:
        """Draw and write the results of a frame, and count them."""
        self._times.append((result.preprocess_ms, result.network_ms, result.readout_ms))
        self._flagged.append(float((result.anomaly_mask > 0).mean()))
        self._draw(index, frame, result)
        if self._options.name_unknown:
            self._regions.append(json.dumps(
                {'frame': index, 'regions': [asdict(region) for region in result.regions]}))
        if self._queries:
            self._query_shares.append([float((result.query_mask == q).mean())
                                       for q in range(len(self._queries))])
        if self._taught:
            self._taught_shares.append([float((result.semantic == entry.id).mean())
                                        for entry in self._taught.classes])
        if self._options.masks:
            _write_maps(self._options.out / 'maps', index, result)

    def _draw(self, index: int, frame: np.ndarray, result: Segmentation) -> None:
        picture = None
        if self._queries:
            picture = QueryPicture(result.query_mask, result.query_score, self._colors)
        if self._composer is None:
            named = list(zip(self._queries.names, self._colors)) if self._queries else []
            self._composer = _composer(self._bundle, frame, named, self._taught)
            self._writer = VideoWriter(self._options.out / 'run.mp4', self._fps,
                                       self._composer.size)
        self._writer.write(self._composer.compose(
            frame, result.semantic, result.anomaly_score, result.anomaly_mask,
            f'{self._bundle.name}   frame {index}', result.anomaly_range, picture,
            _names(result)))

    def close(self) -> None:
        """Close the video."""
        if self._writer is not None:
            self._writer.close()

    def write_listings(self) -> None:
        """Write regions.jsonl, and beside the maps what their ids mean, where asked for."""
        out = self._options.out
        if self._options.name_unknown:
            (out / 'regions.jsonl').write_text('\n'.join(self._regions) + '\n', 'utf-8')
        if self._queries and self._options.masks:
            _write_queries(out / 'maps' / 'queries.json', self._queries, self._colors)
        if self._taught and self._options.masks:
            _write_taught(out / 'maps' / 'taught.json', self._taught)

    def figures(self) -> dict[str, Any]:
        """Return frames, medians of times in ms, shares of the pixels, and the video's path."""
        medians = np.median(np.array(self._times), axis=0)
        return {
            'frames': self.frames,
            'preprocess_ms': float(medians[0]), 'network_ms': float(medians[1]),
            'readout_ms': float(medians[2]),
            'flagged_share': float(np.mean(self._flagged)),
            'query_shares': dict(zip(self._queries.names,
                                     np.mean(self._query_shares, axis=0).tolist()))
            if self._queries else {},
            'taught_shares': dict(zip(self._taught.prototypes.names,
                                      np.mean(self._taught_shares, axis=0).tolist()))
            if self._taught else {},
            'video': str(self._options.out / 'run.mp4')}


def open_language(bundle: Bundle, options: RunOptions,
                  ) -> tuple[PreparedQueries | None, RegionNamer | None]:
    """
    Return the queries and the namer that options ask for, ready for a bundle; None for none.

    Raises LanguageError where the bundle does not know words, RunError where a query cannot be
    taken, TextEncoderError, VocabularyError.
    """
    vocabulary = load_vocabulary(options.vocabulary) if options.vocabulary else None
    if not (options.query or options.name_unknown):
        return None, None
    if bundle.language is None:
        raise LanguageError(f'{bundle.name} has no region embeddings, so it cannot answer '
                            'queries: use a model that was trained with owseg-train grounding')
    encoder = open_text_encoder(
        options.text_encoder or default_text_encoder_path(bundle.language.space))
    scorer = QueryScorer(bundle.language, encoder, vocabulary)
    namer = RegionNamer(scorer, options.vocabulary or '') if options.name_unknown else None
    if not options.query:
        return None, namer
    asked = QueryBook(encoder, vocabulary).ask(options.query)
    if asked.rejected:
        raise RunError('; '.join(f'query {entry.entry!r}: {entry.reason}'
                                 for entry in asked.rejected))
    return scorer.prepare(asked.active, options.query_threshold), namer


def open_prototypes(bundle: Bundle, options: RunOptions) -> PreparedPrototypes | None:
    """
    Return the taught classes that options ask for, ready for a bundle; None for none.

    Raises NoveltyError where the bundle cannot be taught, or the file is not for it.
    """
    if options.prototypes is None:
        return None
    return prepare(PrototypeBook(bundle).load(options.prototypes), bundle,
                   options.prototype_threshold, options.prototype_masks)


def _names(result: Segmentation) -> list[tuple[tuple[float, ...], str]]:
    """Return where the names of regions go, and the names with their scores."""
    height, width = result.anomaly_mask.shape
    return [(tuple(value / size for value, size in zip(region.box, (width, height) * 2)),
             region.name if region.name == UNKNOWN else f'{region.name} {region.name_score:.2f}')
            for region in result.regions or ()]


def _composer(bundle: Bundle, frame: np.ndarray, queries: list,
              taught: PreparedPrototypes | None) -> FrameComposer:
    classes = [*bundle.classes, *(taught.classes if taught else ())]
    return FrameComposer(*panel_size(*frame.shape[:2]),
                         taught.palette if taught else bundle.palette(),
                         [(info.name, info.color) for info in classes], queries)


def _write_queries(path: Path, queries: PreparedQueries, colors: Any) -> None:
    entries = [{'id': index, 'name': name, 'threshold': float(threshold), 'color': color}
               for index, (name, threshold, color) in enumerate(zip(
                   queries.names, queries.thresholds.tolist(), colors))]
    path.write_text(json.dumps({'queries': entries}, indent=2) + '\n', 'utf-8')


def _write_taught(path: Path, taught: PreparedPrototypes) -> None:
    entries = [{'id': entry.id, 'name': entry.name, 'threshold': threshold, 'color': entry.color,
                'shots': len(entry.shots)}
               for entry, threshold in zip(taught.classes, taught.thresholds.tolist())]
    path.write_text(json.dumps({'taught': entries}, indent=2) + '\n', 'utf-8')


def _write_maps(folder: Path, index: int, result: Segmentation) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f'{index:06d}'
    for name, image in (('semantic', result.semantic), ('anomaly_mask', result.anomaly_mask),
                        ('query_mask', result.query_mask)):
        if image is None:
            continue
        name = f'{stem}_{name}.png'
        if not cv2.imwrite(str(folder / name), image):
            raise RunError(f'{folder / name} could not be written; is the disk full?')
    np.save(folder / f'{stem}_anomaly_score.npy', result.anomaly_score)
    if result.query_score is not None:
        np.save(folder / f'{stem}_query_score.npy', result.query_score)
