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
Frames in, segmentations out: the whole runtime without ROS.

In a notebook::

    import cv2
    from owseg_ros.bundle import default_bundle_path
    from owseg_ros.segmenter import Segmenter

    segmenter = Segmenter(default_bundle_path())
    image = cv2.cvtColor(cv2.imread('street.jpg'), cv2.COLOR_BGR2RGB)
    result = segmenter(image)

    result.semantic           # uint8 [H, W], class ids; result.classes[3].name == 'Road'
    result.anomaly_score      # float32 [H, W], higher is stranger
    result.anomaly_mask > 0   # where it is stranger than the calibrated threshold
    result.overlay(image)     # uint8 [H, W, 3], to look at: plt.imshow(result.overlay(image))

    # Another score, at the threshold where it flags 1 % of the known pixels.
    segmenter.settings = readout_settings(segmenter.bundle, score='energy', threshold='fpr=0.01')

In words, where the bundle has region embeddings::

    from owseg_ros.language import QueryBook, QueryScorer
    from owseg_ros.language.installed import open_text_encoder

    encoder = open_text_encoder('')
    book, scorer = QueryBook(encoder), QueryScorer(segmenter.bundle.language, encoder)
    queries = scorer.prepare(book.ask('traffic cone, automobile').active)
    result = segmenter(image, maps=QUERY_MAPS, queries=queries)

    result.query_mask == 1    # where there is an automobile
    result.query_score        # float32 [H, W], of the best query

And names for what is of no known class::

    result = segmenter(image, maps={'regions'}, namer=RegionNamer(scorer))
    result.regions[0].name    # of the largest anomalous region: 'dog', or 'unknown'

Classes taught by example, where the bundle has a metric head::

    from owseg_ros.novelty import prepare, PrototypeBook

    book = PrototypeBook(segmenter.bundle)
    seen = segmenter(image, taught=prepare(book.active, segmenter.bundle))
    book.add_shot('pallet', seen.taught_regions[0].embedding)
    result = segmenter(image, taught=prepare(book.active, segmenter.bundle))

    result.semantic == book.active.classes[0].id    # where there is a pallet
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
import os
import time
from typing import Any, Callable, Iterator, Optional, Sequence, Union

import numpy as np
from owseg_ros import render
from owseg_ros.bundle import Bundle, BundleError, ClassInfo, load_bundle, MANIFEST, UNKNOWN_ID
from owseg_ros.engine import (
    create_engine, Engine, NetworkOutput, TensorrtOptions, TorchOptions)
from owseg_ros.engine.network import check_finite
from owseg_ros.frame import Frame
from owseg_ros.language.naming import NamedRegion, RegionNamer, UNKNOWN
from owseg_ros.language.regions import AnomalousRegions, find_regions, Region
from owseg_ros.language.scores import LanguageError, PreparedQueries
from owseg_ros.novelty.arrays import NoveltyError
from owseg_ros.novelty.frames import mask_bits, TeachableFrame
from owseg_ros.novelty.match import check_space, PreparedPrototypes
from owseg_ros.novelty.metric_head import MetricHead, novelty_of
from owseg_ros.novelty.readout import paint, TaughtReadout, TaughtRegion
from owseg_ros.operating_point import CALIBRATED
from owseg_ros.readout import (
    ALL_MAPS, AnomalyScore, check_maps, ChosenReadout, host_array, make_score, Maps, MaskHistory,
    ObjectSettings, QUERY_MAPS, ReadoutSettings, RoadSettings)

Image = Union[np.ndarray, Frame]
Queries = Union[PreparedQueries, Callable[[], Optional[PreparedQueries]], None]
Taught = Union[PreparedPrototypes, Callable[[], Optional[PreparedPrototypes]], None]

# Asked for like maps; the results are no pictures but a tuple of NamedRegion, features and a
# TeachableFrame.
REGIONS = 'regions'
FEATURES = 'pixel_features'
TEACHABLE = 'teachable'
_NO_PICTURES = frozenset({REGIONS, FEATURES, TEACHABLE})


def readout_settings(bundle: Bundle, score: Optional[str] = None,
                     threshold: Union[float, str] = CALIBRATED, min_area: Optional[int] = None,
                     objects: Optional[bool] = None, on_road: bool = False,
                     **others: Any) -> ReadoutSettings:
    """
    Return settings for a bundle, with what it was calibrated to where nothing else is asked for.

    score: name of an anomaly score; threshold: a number or an operating point
    (operating_point.HOW_TO_ASK); min_area: see ReadoutSettings; objects: whether the score is
    grouped into objects; each None for the bundle's. on_road: report only what stands on the
    road; others: more of ReadoutSettings. Raises ScoreError, OperatingPointError and BundleError
    for what the bundle was not trained, calibrated or described for.
    """
    anomaly = bundle.anomaly
    name = score or anomaly.score
    objects = anomaly.objects if objects is None else objects
    if on_road and not anomaly.road_classes:
        raise BundleError(f'{bundle.name} does not say which of its classes are road: list their '
                          f'ids under anomaly.road_classes in {MANIFEST}')
    return ReadoutSettings(
        score=_score(bundle, name),
        anomaly_threshold=anomaly.threshold_for(threshold, name, objects),
        min_area=anomaly.min_area if min_area is None else min_area,
        objects=ObjectSettings() if objects else None,
        road=RoadSettings(anomaly.road_classes) if on_road else None, **others)


def _score(bundle: Bundle, name: str) -> AnomalyScore:
    return make_score(name, bundle.anomaly.statistics, bundle.outlier_class)


@lru_cache(maxsize=8)
def _score_range(score: AnomalyScore, num_classes: int) -> tuple[float, float]:
    return score.range(num_classes)


@dataclass(frozen=True)
class Segmentation(Maps):
    """
    The maps of one frame (None where not asked for), and what they mean.

    classes: the known classes, indexed by id; palette: uint8 [256, 3] RGB, colours of all ids.
    network_size: (height, width) that the network saw.
    anomaly_range: the anomaly score where one class accepts a pixel, and where all reject it.
    regions: the anomalous regions, the largest first; None where not asked for.
    queries: the set that the query maps answer; None without one, or without these maps.
    taught: the taught classes that the frame was compared with, None without; taught_regions:
    what was compared, see novelty.TaughtReadout.find. pixel_features: float32 [C, h, w];
    teachable: what a region of the frame can be taught from; None where not asked for.
    preprocess_ms, network_ms: of the batch that the frame was in; readout_ms: of this frame.
    """

    classes: tuple[ClassInfo, ...] = ()
    palette: Optional[np.ndarray] = None
    network_size: tuple[int, int] = (0, 0)
    anomaly_range: tuple[float, float] = (0.0, 1.0)
    regions: Optional[tuple[NamedRegion, ...]] = None
    queries: Optional[PreparedQueries] = None
    taught: Optional[PreparedPrototypes] = None
    taught_regions: tuple[TaughtRegion, ...] = ()
    pixel_features: Optional[np.ndarray] = None
    teachable: Optional[TeachableFrame] = None
    preprocess_ms: float = 0.0
    network_ms: float = 0.0
    readout_ms: float = 0.0

    def color(self) -> np.ndarray:
        """Return the semantic map in colour, uint8 [H, W, 3] RGB."""
        return render.colorize(self._need('semantic'), self.palette)

    def anomaly_color(self, low: Optional[float] = None,
                      high: Optional[float] = None) -> np.ndarray:
        """
        Return the anomaly score as a heat map, uint8 [H, W, 3] RGB.

        Black at low, pale yellow at high; None for the ends of anomaly_range.
        """
        low = self.anomaly_range[0] if low is None else low
        high = self.anomaly_range[1] if high is None else high
        return render.anomaly_heat(self._need('anomaly_score'), low, high)

    def overlay(self, frame: Image, alpha: float = 0.5) -> np.ndarray:
        """
        Return the frame with the semantic colours on it, uint8 [H, W, 3] RGB of its size.

        frame: the one that was segmented, uint8 [H, W, 3] RGB or a Frame; alpha: weight of the
        colours. Anomalous regions are outlined where the anomaly mask was asked for.
        """
        return render.overlay(_as_frame(frame).rgb(), self.color(), alpha, self.anomaly_mask)

    def _need(self, name: str) -> np.ndarray:
        value = getattr(self, name)
        if value is None:
            raise ValueError(f'this needs the map {name!r}: ask for it, as in '
                             f"segmenter(frame, maps={{'{name}'}})")
        return value


@dataclass(frozen=True, eq=False)
class NetworkPass:
    """
    Frames that the network has seen and that wait to be read out, see Segmenter.run_network.

    frames: in the order of the batch; output: the network's, of these frames and with its times.
    maps: all that was asked for; queries, namer, taught: as given, None where nothing needs them.
    embeds: whether regions are compared with texts. mask_bits: of each frame, see
    novelty.frames.mask_bits; none where nothing is to be taught.
    """

    frames: tuple[Frame, ...]
    output: NetworkOutput
    maps: frozenset[str]
    queries: Queries
    namer: Optional[RegionNamer]
    taught: Taught
    embeds: bool
    mask_bits: tuple[np.ndarray, ...] = ()


class Segmenter:
    """
    A bundle, the engine that runs its network and the readout of its maps.

    bundle: a loaded Bundle or the folder of one. engine, providers, threads: see
    engine.create_engine; threads also go for the readout. tensorrt, torch: options of these
    engines. readout: auto, cpu or gpu, see readout.choice; the attribute tells which it is.
    settings: see ReadoutSettings; by default the bundle's calibrated threshold and area at
    camera size. Replace the attribute at any time, from any thread: the next frame uses it.

    Raises BundleError, EngineError, ScoreError where the bundle lacks what its score needs, and
    NoveltyError where the prototypes of its known classes cannot be used.
    One segmenter serves one thread at a time; `segment` is `run_network` and then `read_out`,
    and these two may run at the same time, each in a thread of its own.
    """

    def __init__(self, bundle: Union[Bundle, str, os.PathLike], engine: str = 'onnx',
                 providers: Sequence[str] = ('cpu',), threads: int = 0,
                 settings: Optional[ReadoutSettings] = None,
                 tensorrt: Optional[TensorrtOptions] = None,
                 torch: Optional[TorchOptions] = None, readout: str = 'auto'):
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.engine: Engine = create_engine(
            self.bundle, engine, providers, threads, tensorrt, torch)
        self.settings = settings or readout_settings(self.bundle)
        self.readout = ChosenReadout(readout, threads)
        self._taught = None if self.bundle.novelty is None else TaughtReadout(self.bundle)
        self._palette = self.bundle.palette()
        self._palette.setflags(write=False)

    @property
    def network_size(self) -> tuple[int, int]:
        """Return (height, width) of the network's input in pixels."""
        return self.engine.input.height, self.engine.input.width

    @property
    def metric_head(self) -> MetricHead:
        """Return what embeds regions for taught classes; NoveltyError where there is none."""
        novelty_of(self.bundle)
        return self._taught.head

    def __call__(self, frame: Image, maps=ALL_MAPS,
                 queries: Queries = None,
                 namer: Optional[RegionNamer] = None,
                 taught: Taught = None) -> Segmentation:
        """
        Segment one frame: uint8 [H, W, 3] RGB, or a Frame.

        maps: names of the maps to compute, see ALL_MAPS, QUERY_MAPS, REGIONS, FEATURES and
        TEACHABLE; the others are None. queries: what the query maps answer, prepared for this
        bundle; None for nothing. A function that returns them is called before the network runs
        and again after it, so that what is asked for meanwhile is answered by this very frame;
        where there was nothing before, the network runs once more, with its region head. Where
        the network has text features, anomalous regions answer them too (language.regions).
        namer: of the regions; None leaves them unknown. taught: classes that regions are compared
        with (novelty.prepare), also where there are none yet; they have their ids in the semantic
        map and their names among the regions, before those of the namer, and anomalous pixels of
        none of them are 254 in the semantic map whatever the settings. None compares nothing; a
        function that returns them is called when the network has run, where the bundle has a
        metric head.
        Raises FrameError where the array is no such image, EngineError where the network fails,
        LanguageError and NoveltyError where the bundle cannot answer queries, name regions or be
        taught, or not with these.
        """
        return self.segment([frame], maps, queries=queries, namer=namer, taught=taught)[0]

    def segment(self, frames: Sequence[Image], maps=ALL_MAPS,
                histories: Optional[Sequence[MaskHistory]] = None,
                stamps: Optional[Sequence[float]] = None,
                queries: Queries = None,
                namer: Optional[RegionNamer] = None,
                taught: Taught = None) -> list[Segmentation]:
        """
        Segment several frames, of any sizes, in one pass of the network.

        histories: of the cameras that the frames are from, updated by this call, where settings
        steady the anomaly mask over time; stamps: of the frames, seconds. Returns as many
        segmentations, in their order; maps, queries, namer, taught and errors as when called.
        """
        if not frames:
            return []
        return self.read_out(self.run_network(frames, maps, queries, namer, taught),
                             histories, stamps)

    def run_network(self, frames: Sequence[Image], maps=ALL_MAPS, queries: Queries = None,
                    namer: Optional[RegionNamer] = None,
                    taught: Taught = None) -> NetworkPass:
        """
        Run the network on one or more frames, of any sizes: the first half of `segment`.

        Parameters and errors as for `segment`. The result holds the frames, so their pixels
        must not change until it is read out.
        """
        wanted = frozenset((maps,)) if isinstance(maps, str) else frozenset(maps)
        maps = check_maps(wanted - _NO_PICTURES)
        frames = tuple(_as_frame(frame) for frame in frames)
        if not maps & QUERY_MAPS:
            queries = None
        late = callable(queries)
        asked = self._asked(maps, queries() if late else queries)
        if REGIONS not in wanted:
            namer = None
        elif namer is not None:
            self._check_namer(namer)
        if not callable(taught):
            self._check_taught(taught)
        elif self.bundle.novelty is None:
            taught = None
        if TEACHABLE in wanted:
            novelty_of(self.bundle)
        if FEATURES in wanted and not self.bundle.outputs['pixel_features']:
            raise NoveltyError(f'{self.bundle.name} has no pixel features: use a bundle whose '
                               'manifest names that output')
        features = taught is not None or bool(wanted & {FEATURES, TEACHABLE})
        output, embeds = self._infer(frames, asked, namer, features)
        if late and asked is None:
            meanwhile = queries()
            asked = self._asked(maps, meanwhile)
            if asked is None:
                queries = meanwhile
            else:
                spent = output.network_ms
                output, embeds = self._infer(frames, asked, namer, features)
                output = replace(output, network_ms=spent + output.network_ms)
        if FEATURES in wanted:
            self._check_features(output.pixel_features)
        # The logits are at hand now, and have long left the caches when the maps are made.
        bits = tuple(mask_bits(host_array(masks)) for masks in output.mask_logits
                     ) if TEACHABLE in wanted else ()
        return NetworkPass(frames, output, wanted, queries, namer, taught, embeds, bits)

    def _infer(self, frames: tuple[Frame, ...], asked: Optional[PreparedQueries],
               namer: Optional[RegionNamer], features: bool) -> tuple[NetworkOutput, bool]:
        """Run the parts of the network that are needed; return whether regions have texts."""
        answers = asked is not None
        embeds = namer is not None or answers and bool(self.bundle.outputs['text_features'])
        return self.engine.infer(frames, region_embeddings=answers, text_features=embeds,
                                 pixel_features=features,
                                 masks_on_device=self.readout.masks_on_device), embeds

    def read_out(self, seen: NetworkPass, histories: Optional[Sequence[MaskHistory]] = None,
                 stamps: Optional[Sequence[float]] = None) -> list[Segmentation]:
        """
        Make maps of what the network said: the second half of `segment`.

        seen: of `run_network` of this segmenter; histories, stamps, result and errors as for
        `segment`. Frames of a camera must be read out in the order in which they were taken.
        """
        return list(self.each_read_out(seen, histories, stamps))

    def each_read_out(self, seen: NetworkPass,
                      histories: Optional[Sequence[MaskHistory]] = None,
                      stamps: Optional[Sequence[float]] = None) -> Iterator[Segmentation]:
        """Yield what `read_out` returns, each frame as soon as it is done."""
        wanted, output, namer = seen.maps, seen.output, seen.namer
        maps = wanted - _NO_PICTURES
        settings = self.settings
        queries = seen.queries() if callable(seen.queries) else seen.queries
        asked = self._asked(maps, queries)
        taught = seen.taught
        if callable(taught):
            taught = taught()
            self._check_taught(taught)
        outliers = output.outlier_probabilities
        made = maps | {'anomaly_score', 'anomaly_mask'} if REGIONS in wanted else maps
        if taught is not None or TEACHABLE in wanted:
            made |= {'anomaly_mask'}
        for index, (frame, masks, probabilities) in enumerate(zip(
                seen.frames, output.mask_logits, output.class_probabilities)):
            size = self.network_size
            if settings.output_size == 'camera':
                size = (frame.height, frame.width)
            start = time.perf_counter()
            regions = AnomalousRegions(output.text_features[index]) if seen.embeds else None
            result = self.readout(
                masks, probabilities, self.network_size, size, settings, made,
                None if outliers is None else outliers[index], frame.pixels,
                histories and histories[index], None if stamps is None else stamps[index],
                None if asked is None else _query_weights(asked, output, index),
                None if asked is None else asked.thresholds,
                partial(regions.scores, asked) if asked is not None and seen.embeds else None)
            components = None
            if REGIONS in wanted or taught is not None:
                components = (find_regions(result.anomaly_mask) if regions is None
                              else regions.find(result.anomaly_mask)[0])
            compared: tuple[TaughtRegion, ...] = ()
            if taught is not None:
                compared = self._compare(result, components, output, index, taught, settings)
            named = None
            if REGIONS in wanted:
                named = _named(result, components, compared, namer and namer.name(
                    regions.find(result.anomaly_mask)[1]))
            readout_ms = 1e3 * (time.perf_counter() - start)
            yield Segmentation(
                **{name: getattr(result, name) for name in maps}, regions=named,
                queries=queries, road_lost=result.road_lost,
                taught=taught, taught_regions=compared,
                pixel_features=output.pixel_features[index] if FEATURES in wanted else None,
                teachable=None if TEACHABLE not in wanted else TeachableFrame.of(
                    (frame.height, frame.width), result.anomaly_mask,
                    1 - output.no_object_probabilities[index], seen.mask_bits[index],
                    output.pixel_features[index]),
                query_version=(None if not maps & QUERY_MAPS
                               else 0 if queries is None else queries.version),
                classes=self.bundle.classes,
                palette=self._palette if taught is None else taught.palette,
                network_size=self.network_size,
                anomaly_range=_score_range(settings.score, self.bundle.num_classes),
                preprocess_ms=output.preprocess_ms,
                network_ms=output.network_ms, readout_ms=readout_ms)

    def _compare(self, result: Maps, components: Sequence[Region], output: NetworkOutput,
                 index: int, taught: PreparedPrototypes,
                 settings: ReadoutSettings) -> tuple[TaughtRegion, ...]:
        """Compare one frame of a batch with taught classes and paint its semantic map."""
        masks = host_array(output.mask_logits[index])
        mask = result.anomaly_mask
        if components or taught.all_masks:
            self._check_features(output.pixel_features[index])
        found = self._taught.find(
            components, masks, output.pixel_features[index], taught, mask.shape,
            settings.scaled_min_area(self.network_size, masks.shape[1:]))
        if result.semantic is not None:
            paint(result.semantic, mask, found)
        return found

    def _check_features(self, features: np.ndarray) -> None:
        check_finite('pixel_features', features, self.bundle, self.engine.description)

    def _asked(self, maps: frozenset,
               queries: Optional[PreparedQueries]) -> Optional[PreparedQueries]:
        """Return the queries to answer, None where there are none; raise LanguageError."""
        if not maps & QUERY_MAPS:
            return None
        if self.bundle.language is None:
            raise LanguageError(f'{self.bundle.name} has no region embeddings, so it cannot '
                                'answer queries: use a bundle whose manifest has the section '
                                'language')
        if queries is None or not len(queries):
            return None
        if queries.language != self.bundle.language:
            raise LanguageError(f'these queries were prepared for another model than '
                                f'{self.bundle.name}: prepare them with QueryScorer and the '
                                'language section of this one')
        return queries

    def _check_namer(self, namer: RegionNamer) -> None:
        if not self.bundle.outputs['text_features']:
            raise LanguageError(f'{self.bundle.name} has no text features, so it cannot name '
                                'regions: use a bundle whose manifest names that output')
        if namer.language != self.bundle.language:
            raise LanguageError(f'this namer was made for another model than {self.bundle.name}: '
                                'make one with the language section of this one')

    def _check_taught(self, taught: Optional[PreparedPrototypes]) -> None:
        if taught is not None:
            check_space(taught.space, self.bundle)

    def close(self) -> None:
        """End what the engine does in the background, such as a build that goes on."""
        self.engine.close()

    def warm_up(self) -> float:
        """Run blank frames until everything is set up; return ms of the last whole pass."""
        self.engine.warm_up()
        blank = Frame(np.full((*self.network_size, 3), 128, np.uint8))
        self(blank)
        start = time.perf_counter()
        self(blank)
        return 1e3 * (time.perf_counter() - start)


def _query_weights(queries: PreparedQueries, output: NetworkOutput, index: int) -> np.ndarray:
    """Return the weights of the regions of one frame of a batch, float32 [N, Q]."""
    frozen = output.frozen_region_embeddings
    return queries.weights(
        output.region_embeddings[index], 1 - output.no_object_probabilities[index],
        None if frozen is None else frozen[index])


def _named(result: Maps, components: Sequence[Region], compared: Sequence[TaughtRegion],
           names: Optional[Sequence[tuple[str, float]]]) -> tuple[NamedRegion, ...]:
    """Name anomalous regions: by what they were taught as, else by the words for them."""
    chosen = list(names or [(UNKNOWN, 0.0)] * len(components))
    for index, (_, entry) in enumerate(zip(components, compared)):
        if entry.id != UNKNOWN_ID:
            chosen[index] = entry.name, entry.cosine
    return tuple(
        NamedRegion(index, region.box, region.area,
                    float(result.anomaly_score[region.window][region.inside].mean()), *name)
        for index, (region, name) in enumerate(zip(components, chosen)))


def _as_frame(frame: Image) -> Frame:
    return frame if isinstance(frame, Frame) else Frame(frame)
