"""Report errors in one line. Standard library only, so that `--help` is quick."""

import ctypes
import difflib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simmim_plugin.utils.files import printable

EXIT_CODE = os.EX_TEMPFAIL  # 75: a temporary failure, requeue the job
PARENT = 'SIMMIM_PARENT'  # environment variable: id of the process that this one must not outlive
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
EXTRAS = {'mmpretrain': 'mm', 'mmdet': 'det', 'mmseg': 'seg'}  # pip extra that installs a framework
_folders: list[str] = []  # folders for the traceback, the last one first


@contextmanager
def one_line_errors() -> Iterator[None]:
    """On an error, exit with a one-line message; the traceback is written to a file.

    Errors that this package raises before a work dir exists are user errors: the message suffices, no file is written.
    See `keep_traceback_in` for where the file goes.

    SIGTERM and SIGHUP (the terminal is gone) act like `sys.exit`, which also ends the child processes (a loader's
    workers, a comparison's trainings). SIGUSR1, Slurm's warning, exits with the code that asks the scheduler to
    requeue; SIGINT (Ctrl-C) with a line instead of a traceback. During a training `InterruptHook` handles all of them.
    A signal that the parent had ignored (`nohup`) stays ignored. Where the parent has set `PARENT`, its end (killed,
    too) is a SIGTERM to this process.
    """
    _folders.clear()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)
    if parent := os.environ.pop(PARENT, None):
        _end_with(int(parent))
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (any error is written to a file and ends the program)
        origin: BaseException | None = error
        while isinstance(origin, Exception):  # MMEngine has a bare `except:` that makes an error of an exit
            origin = origin.__context__
        if isinstance(origin, KeyboardInterrupt):
            sys.stderr.write('interrupted\n')
            sys.exit(exit_code(signal.SIGINT))
        if isinstance(origin, SystemExit):
            sys.exit(origin.code)
        message = '\n'.join(map(printable, message_of(error).split('\n')))
        if 'TORCHELASTIC_ERROR_FILE' in os.environ:  # torchrun's summary then shows this message
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(RuntimeError(message))
        if not _folders and _is_about_input(error):
            sys.exit(f'error: {message}')
        sys.exit(f'error: {message}\n(traceback: {_write_traceback(traceback.format_exc())})')


def exit_code(number: int) -> int:
    """Exit code of a training that a signal has stopped after it wrote a checkpoint: 75, and 130 after Ctrl-C."""
    return 128 + number if number == signal.SIGINT else EXIT_CODE


def _exit(number: int, frame: Any) -> None:
    sys.exit(EXIT_CODE if number == signal.SIGUSR1 else 128 + number)


def _end_with(parent: int) -> None:
    """Let Linux send SIGTERM to this process when its parent ends, which a parent that is killed cannot do itself."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before
            os.kill(os.getpid(), signal.SIGTERM)


def keep_traceback_in(folder: str) -> None:
    """Let `one_line_errors` write the traceback to `error.txt` in this folder rather than a temporary file."""
    _folders.append(folder)


def _is_about_input(error: BaseException) -> bool:
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, ValueError | FileNotFoundError) and raised_in.is_relative_to(Path(__file__).parents[1])


def _write_traceback(text: str) -> str:
    rank = os.environ.get('RANK')
    for folder in reversed(_folders):
        path = os.path.join(folder, 'error.txt' if rank is None else f'error_rank{rank}.txt')
        try:
            Path(path).write_text(text, encoding='utf-8')
        except OSError:
            continue
        return path
    with tempfile.NamedTemporaryFile('w', prefix='simmim_error_', suffix='.txt', delete=False) as file:
        file.write(text)
    return file.name


def message_of(error: BaseException) -> str:
    """The message without the wrapping of workers and registries; names a missing framework."""
    name = type(error).__name__
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    package, _, component = text.split(' ', 1)[0].partition('.')
    if isinstance(error, KeyError) and package in EXTRAS and find_spec(package) is None:
        return f"{package}.{component} needs {package}: pip install 'simmim_plugin[{EXTRAS[package]}]'"
    return text.rsplit(f'{name}: ', 1)[-1].strip() or name


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Suffix of a message with up to three names similar to the word; empty if there are none."""
    near = difflib.get_close_matches(word, list(names), 3, 0.5)
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''
