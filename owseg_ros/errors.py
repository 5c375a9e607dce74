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
"""The base of every error that owseg_ros raises on purpose, and what their messages quote."""

_SHOWN = 60
# A path is of no use without its end.
SHOWN_PATH = 500


class OwsegError(Exception):
    """An expected failure; its message says what is wrong and what to do about it."""


def describe(error: OSError) -> str:
    """Return one line for an error of the system, such as a folder that cannot be written."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f'{error.filename}: {error.strerror}'


def shown(text: str, longest: int = _SHOWN) -> str:
    """Return a text from outside as a message can quote it: printable and short."""
    text = text.strip(' \t\r\n')
    text = text if len(text) <= longest else f'{text[:longest - 3]}...'
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)
