"""Numbers of a config that MMEngine accepts and that make no training."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.random_state import LARGEST_SEED


def check_numbers(cfg: Config) -> None:
    """Raise ValueError for numbers that MMEngine accepts, and with which a training does nothing or ends in NaN."""
    parts = ('train_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler', 'model', 'default_hooks', 'custom_hooks')
    numbers = {place: value for part in parts for place, value in _leaves(cfg.get(part), part)}
    norm = 'optim_wrapper.clip_grad.max_norm'
    for place, value in numbers.items():
        may_be_infinite = place == norm or not place.startswith(('optim_wrapper', 'param_scheduler'))
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not may_be_infinite)):
            raise ValueError(f'{place}={value!r} must be a finite number')
    for place in (
        *(f'train_cfg.{name}' for name in ('max_epochs', 'max_iters', 'val_interval')),
        'auto_scale_lr.base_batch_size',
        'optim_wrapper.accumulative_counts',
    ):
        if numbers.get(place) is not None:
            whole(place, numbers[place], 1)
    if norm in numbers and not numbers[norm] > 0:
        raise ValueError(f'{norm}={numbers[norm]!r} must be above 0; 5 is the published value')
    if (seed := (cfg.get('randomness') or {}).get('seed')) is not None:
        whole('randomness.seed', seed, 0, LARGEST_SEED)


def _leaves(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Dotted places and values of a part of a config."""
    if isinstance(node, Mapping):
        items: Any = node.items()
    else:
        items = enumerate(node) if isinstance(node, list | tuple) else None
    if items is None:
        yield place, node
    else:
        for key, value in items:
            yield from _leaves(value, f'{place}.{key}')
