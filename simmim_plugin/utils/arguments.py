"""Check arguments, in one line each: name, value, type, range and a hint at what to give instead.

Each function returns the value or raises a ValueError such as
`drop_path_rate=1.5 must be a number in [0, 1); the published value is 0.1`.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

T = TypeVar('T')


def number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, hint: str = '', ends: str = '[]'
) -> Any:
    """A finite number between `low` and `high`; `ends`, such as '[)', says whether each is included."""
    return _checked(name, value, Real, 'a number', low, high, hint, ends)


def whole(name: str, value: Any, low: float = -math.inf, high: float = math.inf, hint: str = '') -> Any:
    """A whole number from `low` to `high`; neither 1.0 nor True is one."""
    return _checked(name, value, Integral, 'a whole number', low, high, hint, '[]')


def multiple(name: str, value: Any, of: int, hint: str = '') -> Any:
    """A positive multiple of a whole number."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < 1 or value % of:
        near = max(1, value // of if is_whole else 1) * of
        raise ValueError(f'{name}={value!r} must be a positive multiple of {of}, e.g. {near}{_more(hint)}')
    return value


def choice(name: str, value: T, options: Collection[T], hint: str = '') -> T:
    """One of the options."""
    equal = [option for option in options if isinstance(value, str | int | float | None) and option == value]
    if not any(isinstance(option, bool) == isinstance(value, bool) for option in equal):  # 0 is not False
        raise ValueError(f'{name}={value!r} is unknown; choose one of {", ".join(map(repr, options))}{_more(hint)}')
    return value


def flag(name: str, value: Any) -> Any:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f'{name}={value!r} must be True or False')
    return value


def flags(**values: Any) -> None:
    """Values that are True or False, by their names."""
    for name, value in values.items():
        flag(name, value)


def text(name: str, value: Any, hint: str = '') -> Any:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f'{name}={value!r} must be a string{_more(hint)}')
    return value


def parts(name: str, value: Any) -> Any:
    """Config of a part, a dict with a type, or a list of such; None."""
    listed = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if any(not isinstance(item, Mapping) or 'type' not in item for item in listed):
        raise ValueError(f"{name}={value!r} must be a dict with a 'type', or None")
    return value


def names(name: str, value: Any, hint: str = '') -> tuple[str, ...]:
    """A list or tuple of strings, as a tuple; a single string is rejected."""
    if isinstance(value, str) or not isinstance(value, Sequence) or any(not isinstance(item, str) for item in value):
        raise ValueError(f'{name}={value!r} must be a list of names{_more(hint)}')
    return tuple(value)


def folders(name: str, value: Any) -> list[str]:
    """The path of a folder, or a list of them, as a list; a leading ~ is the home folder."""
    given = [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(given, Sequence) or not given or any(not isinstance(path, str | os.PathLike) for path in given):
        raise ValueError(f'{name}={value!r} must be the path of a folder, or a list of them')
    return [os.path.expanduser(path) for path in given]


def keys(name: str, value: Any, required: Sequence[str], optional: Sequence[str] = (), hint: str = '') -> Any:
    """A dict that has the required keys, and no others but the optional ones."""
    if not isinstance(value, Mapping) or not set(required) <= set(value) <= {*required, *optional}:
        wanted = [*required, *(f'{key} (optional)' for key in optional)]
        raise ValueError(f'{name}={value!r} must be a dict of {", ".join(wanted)}{_more(hint)}')
    return value


def sides(name: str, size: Any) -> tuple[int, int]:
    """Height and width in pixels, given as both or as one number for both."""
    given = (size, size) if isinstance(size, Integral) else tuple(size) if isinstance(size, Sequence) else ()
    if len(given) != 2 or any(not isinstance(side, Integral) or isinstance(side, bool) or side < 1 for side in given):
        raise ValueError(f'{name}={size!r} must be one side or (height, width), in whole pixels, e.g. 224')
    return int(given[0]), int(given[1])


def grid_of(name: str, size: Any, patch_size: int, hint: str = '') -> tuple[int, int]:
    """Height and width in patches of a size in pixels, whose sides are multiples of the patch."""
    height, width = sides(name, size)
    if height % patch_size or width % patch_size:
        fit = ' x '.join(str(max(1, round(side / patch_size)) * patch_size) for side in (height, width))
        raise ValueError(
            f'{name} of {height} x {width} px: both sides must be multiples of the patch, {patch_size} px, '
            f'e.g. {fit}{_more(hint)}'
        )
    return height // patch_size, width // patch_size


def _checked(name: str, value: Any, kind: Any, words: str, low: float, high: float, hint: str, ends: str) -> Any:
    if isinstance(value, kind) and not isinstance(value, bool) and -math.inf < value < math.inf:  # nan fails as well
        above = value >= low if ends[0] == '[' else value > low
        below = value <= high if ends[1] == ']' else value < high
        if above and below:
            return value
    if math.isfinite(low) and math.isfinite(high):
        words += f' in {ends[0]}{low}, {high}{ends[1]}' if kind is Real else f' from {low} to {high}'
    elif math.isfinite(low):
        words += f' {"of at least" if ends[0] == "[" else "above"} {low}'
    elif math.isfinite(high):
        words += f' {"of at most" if ends[1] == "]" else "below"} {high}'
    raise ValueError(f'{name}={value!r} must be {words}{_more(hint)}')


def _more(hint: str) -> str:
    return f'; {hint}' if hint else ''
