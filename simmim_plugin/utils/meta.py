"""Build models without memory for their weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def on_meta() -> Iterator[None]:
    """Build on the device 'meta' what needs numbers as well: rates of drop path, which are a `linspace`."""
    with torch.device('meta'), _NumbersOnCPU():
        yield


class _NumbersOnCPU(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        return func(*args, **(given | {'device': 'cpu'} if func is torch.linspace else given))
