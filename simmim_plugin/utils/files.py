"""Atomic writes, JSON files, and paths in messages."""

import json
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PART_SUFFIX = '.part'


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file atomically: after a crash of the process or the machine it is complete or does not exist.

    Args:
        path: The file; missing folders are created.

    Yields:
        A hidden path in the same folder to write to, which is synced to disk and renamed at the end. A killed process
        leaves it behind, with the ending `PART_SUFFIX`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}{PART_SUFFIX}')
    try:
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)  # the new name
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; {} if it does not exist."""
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, see `whole_file`."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1), encoding='utf-8')


def check_writable(folder: str) -> None:
    """Create a folder, and raise ValueError if it is not writable."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f'work_dir={folder!r} is not writable ({error.strerror}); choose another with --work-dir (simmim: --out)'
        ) from error


def printable(path: str | os.PathLike[str]) -> str:
    """A path or name for messages; bytes that are not UTF-8 and control characters become backslash escapes."""
    return ''.join(map(_shown, os.fspath(path)))


def _shown(character: str) -> str:
    if '\udc80' <= character <= '\udcff':  # how Python keeps a byte that is not UTF-8
        return f'\\x{ord(character) - 0xDC00:02x}'
    hidden = unicodedata.category(character) in ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')
    return character.encode('unicode_escape').decode() if hidden else character
