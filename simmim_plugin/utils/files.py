"""Write files that are whole or not there, and read and write JSON."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PART_SUFFIX = '.part'


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all, whatever happens meanwhile to the process or the machine.

    Args:
        path: The file; missing folders are made.

    Yields:
        Where to write: a hidden file beside it, which is synced to the disk and takes the name at the end. One that a
        killed process leaves ends in `PART_SUFFIX`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}{PART_SUFFIX}')
    try:
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)  # the name, too
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a file; {} if there is none."""
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all, see `whole_file`."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1), encoding='utf-8')


def check_writable(folder: str) -> None:
    """Make the folder, and raise ValueError if nothing can be written there."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f'work_dir={folder!r} is not writable ({error.strerror}); choose another with --work-dir (simmim: --out)'
        ) from error


def printable(path: str | os.PathLike[str]) -> str:
    """A path for messages; bytes in it that are not UTF-8, which logs could not take, are written as backslashes."""
    return os.fsencode(path).decode('utf-8', 'backslashreplace')
