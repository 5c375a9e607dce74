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
"""The help of both commands: every value has an explanation, every default is stated."""

import argparse

from owseg_ros import cli
from owseg_ros.command_line import Parser
import pytest


def parsers(parser, name):
    """Yield a parser and those of its subcommands, each with its name."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from parsers(inner, f'{name} {word}')


def described(parser):
    """Return the help of each option with a value, as a person reads it, by its name."""
    formatter = parser._get_formatter()
    return {action.dest: formatter._expand_help(action) if action.help else ''
            for action in parser._actions
            if action.nargs != 0 and not isinstance(action, argparse._SubParsersAction)}


def commands():
    yield from parsers(cli.build_parser(), 'owseg')
    pytest.importorskip('owseg_training.cli')
    from owseg_training.cli import build_parser
    yield from parsers(build_parser(), 'owseg-train')


def test_every_option_is_explained_with_its_default():
    for name, parser in commands():
        texts = described(parser)
        for action in parser._actions:
            if action.dest not in texts:
                continue
            text = texts[action.dest]
            assert text, f'{name}: {action.dest} has no help'
            assert text.count('(default') <= 1, f'{name}: {action.dest}: {text}'
            if (action.option_strings and not action.required
                    and action.default not in (None, '', [], (), 0)):
                assert 'default' in text, f'{name}: {action.dest}: {text}'


def test_defaults_are_written_as_they_are_given():
    parser = Parser()
    parser.add_argument('--count', type=int, default=0, help='shots')
    parser.add_argument('--seeds', nargs='+', default=[1, 2], help='each')
    parser.add_argument('--size', default=(640, 480), help='of the frame')
    parser.add_argument('--out', default=None, help='folder')
    parser.add_argument('--names', default=(), help='to keep')
    parser.add_argument('--model', default='a', help='folder (default: the bundled one)')
    parser.add_argument('--masks', action='store_true', help='write maps')
    texts = described(parser)
    assert texts == {
        'count': 'shots (default: 0)', 'seeds': 'each (default: 1 2)',
        'size': 'of the frame (default: 640x480)', 'out': 'folder', 'names': 'to keep',
        'model': 'folder (default: the bundled one)'}
    assert parser._get_formatter()._expand_help(parser._option_string_actions['--masks']) \
        == 'write maps'


@pytest.mark.parametrize('option', ('--iterations', '--accumulate'))
def test_lengths_of_a_training_are_numbers_from_one(option, capsys):
    pytest.importorskip('owseg_training.cli')
    from owseg_training.cli import build_parser
    with pytest.raises(SystemExit):
        build_parser().parse_args(['closed-set', option, '-5'])
    assert "'-5' is not a number from 1" in capsys.readouterr().err
