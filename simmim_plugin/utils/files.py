"""Atomic writes, locks of folders, JSON files, and paths in messages."""

import errno
import fcntl
import json
import os
import platform
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PART_SUFFIX = '.part'
MAX_BYTES = 2**29  # of a decoded image; more is taken for a decompression bomb
PIXELS_PER_BYTE = 512  # of a JPEG, at most: each block of 8 x 8 pixels takes at least one bit
LOCK = '.lock'  # file in a locked folder; it stays, and means nothing unless a process holds the lock
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without locks
_locks: dict[tuple[int, str], tuple[IO[str], int]] = {}  # process and folder -> lock file, how often it was taken
# Folders that systems and devices create between a user's own; those with a leading dot are hidden anyway.
SYSTEM_FOLDERS = (
    '__MACOSX', '__pycache__', '@eaDir', '@Recycle', '@Recently-Snapshot', '#recycle', '#snapshot', '$RECYCLE.BIN',
    'System Volume Information', 'lost+found',
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether every list of images and classes passes over a name: one with a leading dot, or a system's folder."""
    return name.startswith('.') or name in SYSTEM_FOLDERS


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


def lock_folder(folder: str | os.PathLike[str]) -> bool:
    """Lock a folder for this process; it may do so several times.

    The lock ends after as many calls of `unlock_folder`, or with the process, however that ends: the kernel holds it
    (`fcntl`, also over NFS). Forked processes do not have it.

    Returns:
        Whether it is locked; False on a file system without locks.

    Raises:
        ValueError: Another process has locked it; the message has its id and host.
    """
    key = os.getpid(), os.path.realpath(folder)
    if key in _locks:
        file, times = _locks[key]
        _locks[key] = file, times + 1
        return True
    os.makedirs(folder, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(os.path.join(folder, LOCK), flags, 0o666), 'r+', encoding='utf-8')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = file.read() or 'another process'
        file.close()
        if error.errno in NO_LOCKS:
            return False
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise ValueError(
            f'{printable(folder)!r} is in use by another training ({holder}): wait for its end, stop it, or choose '
            'another --work-dir (simmim: --out)'
        ) from error
    file.truncate(0)
    print(f'process {os.getpid()} on {platform.node()}', end='', file=file, flush=True)
    _locks[key] = file, 1
    return True


def unlock_folder(folder: str | os.PathLike[str]) -> None:
    """Undo one call of `lock_folder`."""
    key = os.getpid(), os.path.realpath(folder)
    file, times = _locks.pop(key, (None, 0))
    if file is not None and times > 1:
        _locks[key] = file, times - 1
    elif file is not None:
        file.close()


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Descriptor of a regular file, also as `opener` of `open`; without waiting for the writer of a named pipe.

    Raises:
        OSError: There is no such file, or it is a folder, a named pipe, a socket or a device.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    code, what = (errno.EISDIR, 'Is a directory') if stat.S_ISDIR(mode) else (errno.EINVAL, 'Not a regular file')
    raise OSError(code, what, os.fspath(path))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file with a dict; {} if it does not exist.

    Raises:
        ValueError: It holds something else; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{str(path)!r} is damaged, or no JSON file ({error})') from error
    if not isinstance(content, dict):
        raise ValueError(f'{str(path)!r} holds a {type(content).__name__}, not a dict')
    return content


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
    """A path for messages; bytes that are not UTF-8, which logs cannot encode, become backslash escapes."""
    return os.fsencode(path).decode('utf-8', 'backslashreplace')
