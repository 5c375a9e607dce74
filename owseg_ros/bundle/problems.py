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
"""Errors of bundles: one line that names the key or file and says what to do."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NoReturn

from owseg_ros.errors import OwsegError

MANIFEST = 'manifest.yaml'
PICKLE_SUFFIXES = frozenset({'.pt', '.pth', '.pkl', '.pickle', '.ckpt', '.joblib', '.p'})
EXPORT_HINT = 'write the bundle with owseg_ros.bundle.write_bundle (owseg-train export)'


class BundleError(OwsegError):
    """A bundle that must not be used; the message names the file or key and says what to do."""


def error_of(folder: Path | str, problem: str) -> BundleError:
    """Return the error of a bundle, on one line."""
    text = f'Bundle {folder}: {problem}'
    return BundleError(''.join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def refuse(folder: Path | str, problem: str) -> NoReturn:
    """Raise the error of a bundle."""
    raise error_of(folder, problem)


def did_you_mean(name: Any, known: Any) -> str:
    """Return ' (did you mean ...?)' with the closest of the known names, or ''."""
    close = difflib.get_close_matches(str(name), [str(entry) for entry in known], n=1)
    return f' (did you mean {close[0]!r}?)' if close else ''


def short(value: Any) -> str:
    """Return what a value looks like, 80 characters at most."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + '...'
