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
"""Models of open_clip by name, with random weights or those of a local file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import logging
from pathlib import Path
from typing import Any

from owseg_ros.errors import OwsegError
from owseg_training.torchvision_compat import make_torchvision_importable
from torch import nn


class OpenClipError(OwsegError, ValueError):
    """A model that open_clip cannot make; the message says why."""


def import_open_clip() -> Any:
    """Return the module open_clip; raises OpenClipError where it is not installed."""
    make_torchvision_importable()
    try:
        import open_clip
    except ImportError as error:
        raise OpenClipError(f'{error}; install open_clip_torch') from error
    return open_clip


def open_clip_model(name: str, weights: str | Path | None = None) -> nn.Module:
    """
    Return a model of open_clip in evaluation mode.

    name: as open_clip.list_models() has it; weights: a local checkpoint that open_clip reads
    (its own, OpenAI's, safetensors), None for random ones. Nothing is downloaded.
    Raises OpenClipError where the model is not known or the checkpoint cannot be read or does
    not fit.
    """
    open_clip = import_open_clip()
    if name not in open_clip.list_models():
        raise OpenClipError(f'open_clip knows no model {name!r}; its names are those of '
                            'open_clip.list_models()')
    if weights is not None and not Path(weights).is_file():
        raise OpenClipError(f'{weights} cannot be read: there is no such file')
    try:
        with _random_weights_expected():
            return open_clip.create_model(name, pretrained=weights and str(weights)).eval()
    # Checkpoints fail in as many ways as there are formats of them.
    except (RuntimeError, ValueError, KeyError, OSError, AttributeError, AssertionError) as error:
        raise OpenClipError(f'open_clip cannot make {name} of {weights}: '
                            f'{" ".join(str(error).split())[:300]}') from error


@contextmanager
def _random_weights_expected() -> Iterator[None]:
    """Leave out open_clip's warning that it was given no weights; they may come later."""
    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith('No pretrained weights loaded')

    # open_clip logs to the root logger.
    logger = logging.getLogger()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
