"""End a program with one line for an error. Standard library only, so that `--help` is quick."""

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

EXIT_CODE = os.EX_TEMPFAIL  # 75: it failed for now, try again
EXTRAS = {'mmpretrain': 'mm', 'mmdet': 'det', 'mmseg': 'seg'}  # that bring a framework
_folders: list[str] = []  # for the traceback, the last one first


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line for an error; the traceback goes into a file, so nothing is lost.

    Errors that this package raises before a work dir exists are user errors: the message suffices, no file is written.
    See `keep_traceback_in` for where the file goes.

    SIGTERM ends it like `sys.exit`, so that the processes it has started (a loader's workers, a comparison's trainings)
    end with it. SIGUSR1, Slurm's warning, ends it with the code that asks for another try; see `InterruptHook` for both
    during a training.
    """
    _folders.clear()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(EXIT_CODE))
    try:
        yield
    except Exception as error:  # noqa: BLE001 (whatever it is, it is written down and ends the program)
        message = message_of(error)
        if 'TORCHELASTIC_ERROR_FILE' in os.environ:  # torchrun's summary then ends with our message
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(RuntimeError(message))
        if not _folders and _is_about_input(error):
            sys.exit(f'error: {message}')
        sys.exit(f'error: {message}\n(traceback: {_write_down(traceback.format_exc())})')


def keep_traceback_in(folder: str) -> None:
    """Have `one_line_errors` write the traceback into `error.txt` of this folder; else it is a new temporary file."""
    _folders.append(folder)


def _is_about_input(error: Exception) -> bool:
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, ValueError | FileNotFoundError) and raised_in.is_relative_to(Path(__file__).parents[1])


def _write_down(text: str) -> str:
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


def message_of(error: Exception) -> str:
    """The message without what workers and registries wrap around it; a framework that is missing is named."""
    name = type(error).__name__
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    package, _, component = text.split(' ', 1)[0].partition('.')
    if isinstance(error, KeyError) and package in EXTRAS and find_spec(package) is None:
        return f"{package}.{component} needs {package}: pip install 'simmim_plugin[{EXTRAS[package]}]'"
    return text.rsplit(f'{name}: ', 1)[-1].strip() or name


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message: up to three names that are close to the word, or nothing."""
    near = difflib.get_close_matches(word, list(names), 3, 0.5)
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''
