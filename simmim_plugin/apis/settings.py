"""Check the settings of MMEngine that it accepts though a training does nothing with them, or refuses unnamed."""

import math
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from mmengine.config import Config

from simmim_plugin.utils.arguments import number, whole
from simmim_plugin.utils.configs import type_name
from simmim_plugin.utils.random_state import LARGEST_SEED

Check = Callable[[str, Any], Any]
PARTS = (
    *('train_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler', 'model', 'default_hooks', 'custom_hooks'),
    *('randomness', 'train_dataloader', 'val_dataloader', 'test_dataloader'),
)


def or_none(check: Check) -> Check:
    """The same check, which None passes."""
    return lambda name, value: None if value is None else check(name, value)


def max_norm(name: str, value: Any) -> Any:
    """A norm to clip to; infinity only measures."""
    return value if value == math.inf else number(name, value, 0, hint='5 is the published value', ends='()')


# Pattern of the place -> check. `param_scheduler` is a dict or a list of them.
RULES: dict[str, Check] = {
    'train_cfg.max_epochs': partial(whole, low=1, hint='e.g. 100'),
    'train_cfg.max_iters': partial(whole, low=1, hint='e.g. 100000'),
    'train_cfg.val_interval': partial(whole, low=1, hint='1 is every epoch'),
    'auto_scale_lr.base_batch_size': partial(whole, low=1, hint='the total batch that the rate is for'),
    'optim_wrapper.accumulative_counts': partial(whole, low=1, hint='1 accumulates nothing'),
    'optim_wrapper.clip_grad.max_norm': max_norm,
    'optim_wrapper.optimizer.lr': partial(number, low=0, hint='e.g. 1e-4'),
    'optim_wrapper.optimizer.weight_decay': partial(number, low=0, hint='0.05 is the published value'),
    'param_scheduler*.start_factor': partial(number, low=0, high=1, hint='the share of the rate to start from'),
    'param_scheduler*.begin': partial(number, low=0, hint='0 is the start'),
    'param_scheduler*.end': partial(number, low=0, ends='()', hint='usually train_cfg.max_epochs'),
    'default_hooks.logger.interval': partial(whole, low=1, hint='50 logs every 50 iterations'),
    'randomness.seed': or_none(partial(whole, low=0, high=LARGEST_SEED)),
    '*_dataloader.batch_size': partial(whole, low=1, hint='e.g. 32'),
    '*_dataloader.num_workers': or_none(partial(whole, low=0, hint='None chooses by the number of CPUs')),
}


def check_settings(cfg: Config) -> None:
    """Raise ValueError for a setting as in `RULES`, and for NaN or infinity, which train nothing or end in NaN.

    Also for an EMAHook with sharded weights, which it cannot copy.
    """
    hooks = [type_name(hook) for hook in cfg.get('custom_hooks') or () if isinstance(hook, Mapping)]
    if type_name(cfg.get('strategy') or {}) == 'ShardedStrategy' and 'EMAHook' in hooks:
        raise ValueError('EMAHook cannot be combined with ShardedStrategy; leave one of them out')
    for place, value in (found for part in PARTS for found in _nodes(cfg.get(part), part)):
        checks = [check for pattern, check in RULES.items() if fnmatchcase(place, pattern)]
        for check in checks:
            check(place, value)
        may_be_infinite = checks or not place.startswith(('optim_wrapper', 'param_scheduler'))
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not may_be_infinite)):
            raise ValueError(f'{place}={value!r} must be a finite number')


def _nodes(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Dotted places and values of a part of a config, and of all that is in it."""
    yield place, node
    listed = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in node.items() if isinstance(node, Mapping) else listed:
        yield from _nodes(value, f'{place}.{key}')
