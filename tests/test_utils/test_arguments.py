"""Argument checks: what each accepts, and its message for absurd values."""

import math
from fractions import Fraction

import numpy as np
import pytest

from simmim_plugin.utils import arguments

NAN, INF = math.nan, math.inf
# Neither a number nor a whole number, and how each looks in a message.
NO_NUMBERS = [(NAN, 'nan'), (INF, 'inf'), (-INF, '-inf'), (True, 'True'), ('1', "'1'"), (None, 'None'), ([1], '[1]')]
NO_NUMBERS += [((), '()'), ({}, '{}'), (1 + 0j, '(1+0j)')]


def message(check, *args, **kwargs) -> str:
    with pytest.raises(ValueError) as raised:
        check(*args, **kwargs)
    return str(raised.value)


@pytest.mark.parametrize('value', [0, 1, 0.25, np.float32(0.5), np.int64(1), Fraction(1, 3)])
def test_numbers(value):
    assert arguments.number('ratio', value, 0, 1) is value


@pytest.mark.parametrize(('value', 'shown'), [*NO_NUMBERS, (-0.1, '-0.1'), (1.5, '1.5'), (10**400, '1' + '0' * 400)])
def test_no_numbers(value, shown):
    expected = f'ratio={shown} must be a number in [0, 1]; the usual value is 0.6'
    assert message(arguments.number, 'ratio', value, 0, 1, 'the usual value is 0.6') == expected


@pytest.mark.parametrize(('value', 'shown'), NO_NUMBERS)
def test_no_numbers_without_bounds(value, shown):
    assert message(arguments.number, 'x', value) == f'x={shown} must be a number'


@pytest.mark.parametrize(
    ('low', 'high', 'ends', 'good', 'bad', 'words'),
    [
        (0, 1, '[]', [0, 1], [], None),
        (0, 1, '[)', [0, 0.999], [1], 'in [0, 1)'),
        (0, 1, '(]', [0.001, 1], [0], 'in (0, 1]'),
        (0, 1, '()', [0.5], [0, 1], 'in (0, 1)'),
        (2, INF, '[]', [2, 1e300], [1.9], 'of at least 2'),
        (2, INF, '()', [2.1], [2], 'above 2'),
        (-INF, 2, '[]', [2, -1e300], [2.1], 'of at most 2'),
        (-INF, 2, '()', [1.9], [2], 'below 2'),
    ],
)
def test_bounds_of_numbers(low, high, ends, good, bad, words):
    for value in good:
        assert arguments.number('x', value, low, high, ends=ends) == value
    for value in bad:
        assert message(arguments.number, 'x', value, low, high, ends=ends) == f'x={value} must be a number {words}'


@pytest.mark.parametrize('value', [1, 12, np.int64(3), np.uint8(12)])
def test_whole_numbers(value):
    assert arguments.whole('num_layers', value, 1, 12) is value


@pytest.mark.parametrize(
    ('value', 'shown'),
    [*NO_NUMBERS, (1.0, '1.0'), (2.5, '2.5'), (0, '0'), (13, '13'), (Fraction(3, 1), 'Fraction(3, 1)')],
)
def test_no_whole_numbers(value, shown):
    expected = f'num_layers={shown} must be a whole number from 1 to 12; e.g. 12'
    assert message(arguments.whole, 'num_layers', value, 1, 12, 'e.g. 12') == expected


def test_bounds_of_whole_numbers():
    assert arguments.whole('x', 10**400, 1) == 10**400
    assert message(arguments.whole, 'x', 0, 1) == 'x=0 must be a whole number of at least 1'
    assert message(arguments.whole, 'x', 3, high=2) == 'x=3 must be a whole number of at most 2'
    assert message(arguments.whole, 'x', 1.0) == 'x=1.0 must be a whole number'
    assert message(arguments.whole, 'x', np.bool_(True)).endswith(' must be a whole number')


def test_choices():
    for options in (('linear', 'cosine'), {'linear': 1, 'cosine': 2}, {'linear', 'cosine'}):
        assert arguments.choice('schedule', 'cosine', options) == 'cosine'
    assert arguments.choice('mode', None, (None, 'fast')) is None
    assert arguments.choice('on_cpu', True, (True, False, 'auto')) is True


@pytest.mark.parametrize(
    ('value', 'shown'),
    [
        ('step', "'step'"), ('Linear', "'Linear'"), ('', "''"), (None, 'None'), (NAN, 'nan'), (INF, 'inf'),
        (True, 'True'), (1.0, '1.0'), (['linear'], "['linear']"), (('linear',), "('linear',)"), ({}, '{}'),
    ],
)  # fmt: skip
def test_no_choices(value, shown):
    expected = f"schedule={shown} is unknown; choose one of 'linear', 'cosine'"
    assert message(arguments.choice, 'schedule', value, ('linear', 'cosine')) == expected


def test_flags():
    assert arguments.flag('linear', True) is True and arguments.flag('linear', False) is False


@pytest.mark.parametrize(
    ('value', 'shown'),
    [(1, '1'), (0, '0'), (1.0, '1.0'), ('True', "'True'"), (None, 'None'), (NAN, 'nan'), (INF, 'inf'), ([], '[]')],
)
def test_no_flags(value, shown):
    assert message(arguments.flag, 'linear', value) == f'linear={shown} must be True or False'


@pytest.mark.parametrize('value', [[], ('SIGTERM',), ['SIGTERM', 'SIGUSR1']])
def test_names(value):
    assert arguments.names('signals', value) == tuple(value)


@pytest.mark.parametrize(
    ('value', 'shown'),
    [
        ('SIGTERM', "'SIGTERM'"), (15, '15'), (1.0, '1.0'), (True, 'True'), (None, 'None'), (NAN, 'nan'), (INF, 'inf'),
        ([15], '[15]'), (['SIGTERM', None], "['SIGTERM', None]"), ({'SIGTERM': 1}, "{'SIGTERM': 1}"),
    ],
)  # fmt: skip
def test_no_names(value, shown):
    assert message(arguments.names, 'signals', value) == f'signals={shown} must be a list of names'
    expected = f"signals={shown} must be a list of names; e.g. ['SIGTERM']"
    assert message(arguments.names, 'signals', value, "e.g. ['SIGTERM']") == expected


def test_keys():
    for value in (dict(ratio=0.5, unit=32), dict(ratio=0.5, unit=32, region_ratio=1)):
        assert arguments.keys('local', value, ['ratio', 'unit'], ['region_ratio']) is value
    assert arguments.keys('adapt', {}, [], ['alpha']) == {}


@pytest.mark.parametrize(
    ('value', 'shown'),
    [
        (dict(ratio=0.5), "{'ratio': 0.5}"),
        (dict(ratio=0.5, unit=32, units=1), "{'ratio': 0.5, 'unit': 32, 'units': 1}"),
        ({1: 2}, '{1: 2}'), ({}, '{}'), (0.5, '0.5'), (NAN, 'nan'), (INF, 'inf'), (True, 'True'), ('1', "'1'"),
        (None, 'None'), (['ratio', 'unit'], "['ratio', 'unit']"),
    ],
)  # fmt: skip
def test_no_keys(value, shown):
    expected = f'local={shown} must be a dict of ratio, unit, region_ratio (optional)'
    assert message(arguments.keys, 'local', value, ['ratio', 'unit'], ['region_ratio']) == expected
    expected = f'local={shown} must be a dict of ratio, unit; see the docs'
    assert message(arguments.keys, 'local', value, ['ratio', 'unit'], hint='see the docs') == expected


@pytest.mark.parametrize(
    ('value', 'expected'),
    [(224, (224, 224)), ((192, 256), (192, 256)), ([192, 256], (192, 256)), (np.int64(224), (224, 224)), (1, (1, 1))],
)
def test_sides(value, expected):
    found = arguments.sides('img_size', value)
    assert found == expected and all(type(side) is int for side in found)


@pytest.mark.parametrize(
    ('value', 'shown'),
    [
        (0, '0'), (-224, '-224'), (224.0, '224.0'), (NAN, 'nan'), (INF, 'inf'), (True, 'True'), ('224', "'224'"),
        ('12', "'12'"), (None, 'None'), ([], '[]'), ([224], '[224]'), ((1, 2, 3), '(1, 2, 3)'), ((224, 0), '(224, 0)'),
        ((224, 1.0), '(224, 1.0)'), ((224, NAN), '(224, nan)'), ((True, 224), '(True, 224)'),
        ((224, '1'), "(224, '1')"), ((224, None), '(224, None)'), ({1: 2, 3: 4}, '{1: 2, 3: 4}'),
    ],
)  # fmt: skip
def test_no_sides(value, shown):
    expected = f'img_size={shown} must be one side or (height, width), in whole pixels, e.g. 224'
    assert message(arguments.sides, 'img_size', value) == expected
    assert message(arguments.grid_of, 'img_size', value, 16) == expected


def test_grids():
    assert arguments.grid_of('image', 224, 16) == (14, 14)
    assert arguments.grid_of('image', (32, 80), 16) == (2, 5)


@pytest.mark.parametrize(
    ('size', 'words', 'fit'),
    # Rounded to the nearest multiple, and at least one patch.
    [(200, '200 x 200', '192 x 192'), ((64, 90), '64 x 90', '64 x 96'), ((5, 64), '5 x 64', '16 x 64')],
)
def test_no_grids(size, words, fit):
    expected = f'image of {words} px: both sides must be multiples of the patch, 16 px, e.g. {fit}'
    assert message(arguments.grid_of, 'image', size, 16) == expected
    assert message(arguments.grid_of, 'image', size, 16, hint='crop it first') == f'{expected}; crop it first'
