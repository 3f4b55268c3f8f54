"""Reading checkpoint files without running what is in them."""

import os
import re
import zipfile
from typing import Any

import torch


def load_file(path: str | os.PathLike[str], map_location: str = 'cpu') -> dict[str, Any]:
    """Read a checkpoint without unpickling arbitrary objects (`weights_only`).

    Args:
        path: The file.
        map_location: Device for the tensors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, or holds more than tensors, numbers and strings.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {os.fspath(path)!r} does not exist (from {os.getcwd()})')
    try:
        # Mapped, so that a check of a large file reads no more than it must.
        return torch.load(path, map_location=map_location, weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises anything from EOFError to KeyError for files that are no checkpoints
        objects = re.search(r'GLOBAL (\S+)', str(error))
        reason = (
            f'it holds Python objects ({objects[1]}), which are refused'
            if objects
            else 'it is damaged or no checkpoint'
        )
        raise ValueError(f'checkpoint {os.fspath(path)!r} cannot be read: {reason}') from error
