"""The command line that runs, for messages that say how it goes on. Standard library only."""

import os
import shlex
from collections.abc import Sequence

COMMAND = 'SIMMIM_COMMAND'  # environment variable: the command line of the launcher that started this process
_words: list[str] = []


def note_command(program: str, arguments: Sequence[str]) -> None:
    """Note the command that starts: its name as in examples ('simmim train', 'python tools/train.py') and arguments."""
    launcher = os.environ.pop(COMMAND, None)
    _words[:] = shlex.split(launcher) if launcher else [*shlex.split(program), *arguments]


def resuming_command() -> str:
    """The noted command with `--resume`, from the newest checkpoint; '--resume' alone where none is noted (Python)."""
    words = [word for word in _words if not word.startswith('--resume=')]
    if '--resume' in words:
        place = words.index('--resume')
        has_path = place + 1 < len(words) and not words[place + 1].startswith('-')
        del words[place : place + 1 + has_path]
    return shlex.join([*words, '--resume'])
