"""Load configs: fill in named parts, apply `--cfg-options`, catch typos, infer classes from the data folder.

The configs of this package name this module in `custom_imports`, so MMEngine imports it when it reads one of them; from
then on MMEngine's own `Config` fills them in, see `_init`. Tools of MMPretrain, MMDetection and MMSegmentation, which
know nothing of `load_config`, thus read them as well.
"""

import copy
import difflib
import functools
import inspect
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.runner import Runner

from simmim_plugin.datasets.class_names import class_names, fill_in_classes
from simmim_plugin.registry import SCOPE
from simmim_plugin.utils.configs import datasets_of, fill_in_tta, innermost, inside, training_data
from simmim_plugin.utils.errors import did_you_mean
from simmim_plugin.utils.hardware import default_workers
from simmim_plugin.utils.resources import find_config

# Top-level keys that MMEngine uses; it silently ignores a misspelt one.
RUNNER_KEYS = {
    *inspect.signature(Runner.__init__).parameters,
    *('activation_checkpointing', 'compile', 'custom_imports', 'data_root', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn'),
} - {'self', 'cfg'}
PART = '_part_'  # `dict(_part_='mask')` in a list stands for the top-level `mask`
_AS_WRITTEN: ContextVar[bool] = ContextVar('as written', default=False)


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config, apply `--cfg-options`, and check the keys.

    Lists may name their parts, see `fill_in_parts`. Data sets with `data_root=None`, as in the configs of this package,
    get the top-level `data_root`, which a leaf config or an option sets. A model with `num_classes=None` gets the
    classes of the training data, see `fill_in_data`.

    Args:
        path: The config file, or the name of one in this package, such as `finetune/vit-b_folder.py`.
        options: Dotted keys and values, from `mmengine.config.DictAction`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A key is unknown and looks misspelt, or names no place in the config.
    """
    path = find_config(path)
    with as_written():
        cfg = Config.fromfile(path)
    fill_in_parts(cfg)
    ours = cfg.get('default_scope') == SCOPE
    for key in cfg:
        if key not in RUNNER_KEYS and (near := difflib.get_close_matches(key, RUNNER_KEYS, 1, 0.85)):
            raise ValueError(f'unknown config key {key!r}; did you mean {near[0]!r}?')
        if ours and key not in RUNNER_KEYS and (places := _places(key, cfg)) and cfg[key] not in places.values():
            raise ValueError(f'config key {key!r} does nothing at the top level; did you mean {next(iter(places))!r}?')
    if ours and cfg.get('train_pipeline') and cfg.train_pipeline not in _pipelines(cfg):
        print_log(
            f'train_pipeline in {path} is not the pipeline of train_dataloader.dataset, which is the one that is used; '
            'to use it: train_dataloader = dict(dataset=dict(pipeline=train_pipeline))',
            level=logging.WARNING,
        )
    apply_options(cfg, options or {})
    fill_in_held_out(cfg)
    fill_in_data(cfg)
    if 'data_root' in (options or {}) and cfg.data_root not in (data.get('data_root') for data in datasets_of(cfg)):
        kind = training_data(cfg).get('type')
        raise ValueError(f'data_root={cfg.data_root!r} has no place in {path}, whose dataset is {kind}')
    return cfg


@contextmanager
def as_written() -> Iterator[None]:
    """Read configs without filling them in: parts are still names, data folders and classes may be None."""
    token = _AS_WRITTEN.set(True)
    try:
        yield
    finally:
        _AS_WRITTEN.reset(token)


def fill_in_parts(cfg: Config) -> None:
    """Replace every `dict(_part_='mask')` in a list by a copy of the top-level `mask`.

    MMEngine inherits a list as a whole, with copies of the parts. With names in the list, a leaf config only needs
    `mask = dict(mask_ratio=0.5)`, or `flip = None` to leave a part out. Keys next to `_part_` override the part's.

    Raises:
        ValueError: There is no top-level part of that name, or it is no dict.
    """
    for items in _lists(cfg):
        items[:] = [part for item in items for part in _filled_in(cfg, item)]


def _filled_in(cfg: Config, item: Any) -> list[Any]:
    if not isinstance(item, Mapping) or PART not in item:
        return [item]
    if (name := item[PART]) not in cfg:
        raise ValueError(f'{PART}={name!r} names no top-level key of the config{did_you_mean(name, list(cfg))}')
    if cfg[name] is None:
        return []
    if not isinstance(cfg[name], Mapping):
        raise ValueError(f'{name}={cfg[name]!r} must be a dict, or None to leave the part out')
    own = {key: value for key, value in item.items() if key != PART}
    return [ConfigDict({**copy.deepcopy(cfg[name]), **own})]


def named_parts(cfg: Config) -> list[str]:
    """The top-level keys whose value occurs in a list of the config, such as `mask` in `train_pipeline`."""
    # The parts in `held_out` are those of the training data.
    items = [item for key in cfg if key != 'held_out' for found in _lists(cfg[key]) for item in found]
    return [name for name, value in cfg.items() if isinstance(value, Mapping) and value in items]


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Apply `--cfg-options` to a config.

    Options of a named part, such as `mask`, are applied first, wherever the part occurs in a list. Options of
    `train_pipeline` also change the training data.

    Raises:
        ValueError: A key names no place in the config, or one that nothing is built from.
    """
    parts = named_parts(cfg)
    for key in options:
        _check_option(cfg, key, parts)
    _merge_options(cfg, options, parts)


def _merge_options(cfg: Config, options: Mapping[str, Any], parts: Sequence[str], allow_list_keys: bool = True) -> None:
    named = {key: value for key, value in options.items() if key.split('.')[0] in parts}
    before = {name: copy.deepcopy(cfg[name]) for name in {key.split('.')[0] for key in named}}
    _plain_merge(cfg, named, allow_list_keys)
    for items in list(_lists(cfg)):
        items[:] = [next((copy.deepcopy(cfg[n]) for n, part in before.items() if item == part), item) for item in items]
    with_it = [data for data in _training(cfg) if data.get('pipeline') == cfg.get('train_pipeline')]
    _plain_merge(cfg, {key: value for key, value in options.items() if key not in named}, allow_list_keys)
    if any(key.split('.')[0] == 'train_pipeline' for key in options):
        for data in with_it or [training_data(cfg)]:
            data.pipeline = cfg.train_pipeline


def fill_in_held_out(cfg: Config) -> None:
    """With `val_root`, validate on it as the top-level `held_out` says; what the config has itself wins."""
    if cfg.get('val_root') and cfg.get('held_out'):
        held_out = Config(copy.deepcopy(cfg.held_out.to_dict()))
        held_out.val_dataloader.dataset.data_root = cfg.val_root
        held_out.merge_from_dict({key: cfg[key] for key in held_out if cfg.get(key)})
        cfg.merge_from_dict(held_out.to_dict())


def fill_in_data(cfg: Config) -> int:
    """Fill in the top-level `data_root` where a data set has None, and the classes where model or data sets have None.

    The classes are a top-level `classes`, or read from the training data, see `class_names`. An evaluator without
    annotations gets those of its data. With fewer than five classes, top-5 accuracy is removed.

    Returns:
        The number of classes, see `fill_in_classes`.

    Raises:
        FileNotFoundError: The file with the classes does not exist.
        ValueError: There are no classes, or those of validation or test data differ from the training data.
    """
    for dataset in datasets_of(cfg):
        if 'data_root' in dataset and dataset['data_root'] is None:
            dataset.data_root = cfg.get('data_root')
        if cfg.get('classes') and 'metainfo' in dataset and dataset['metainfo'] is None:
            dataset.metainfo = dict(classes=list(cfg.classes))
    count = fill_in_classes(cfg.get('model') or {}, datasets_of(cfg)) if training_data(cfg) else 0
    for split in ('val', 'test'):
        for metric in _metrics(cfg, split):
            if count and 'topk' in metric:
                topk = metric['topk'] if isinstance(metric['topk'], Sequence) else [metric['topk']]
                metric['topk'] = [k for k in topk if k <= count]
            if 'ann_file' in metric and metric['ann_file'] is None:
                data = innermost(cfg[f'{split}_dataloader'].dataset)
                metric['ann_file'] = os.path.join(data.get('data_root') or '', data['ann_file'])
    return count


def _metrics(cfg: Config, split: str) -> list[Any]:
    metrics: Any = cfg.get(f'{split}_evaluator') or []
    return [metrics] if isinstance(metrics, Mapping) else metrics


def _training(cfg: Config) -> list[Any]:
    return inside(cfg.train_dataloader.dataset) if cfg.get('train_dataloader') else []


def _pipelines(cfg: Config) -> list[Any]:
    return [data.get('pipeline') for data in _training(cfg)]


def _check_option(cfg: Config, key: str, named: Sequence[str]) -> None:
    node: Any = cfg
    parts = key.split('.')
    counts = parts[0] in {*RUNNER_KEYS, *named, 'train_pipeline', 'tta_model', 'tta_pipeline'}
    for depth, part in enumerate(parts):
        if depth and not counts and isinstance(node, Mapping) and 'type' in node:
            place = '.'.join(parts[:depth])
            what = f'one of the named parts {", ".join(named)}, or ' if named else ''
            raise ValueError(
                f'--cfg-options {key}: nothing is built from {place!r}; set {what}a key of model, train_dataloader ...'
            )
        if isinstance(node, list | tuple):
            if not part.isdigit() or int(part) >= len(node):
                raise ValueError(f'--cfg-options {key}: {part!r} is no index into a list of {len(node)}')
            node = node[int(part)]
            continue
        if not isinstance(node, Mapping | Config):
            raise ValueError(f'--cfg-options {key}: {".".join(parts[:depth])} is a plain value and has no {part!r}')
        if part not in node:
            top = depth == 0 and part in RUNNER_KEYS
            if not top and depth < max(1, len(parts) - 1):  # the component checks a new last key
                names = sorted({*node, *RUNNER_KEYS}) if depth == 0 else sorted(node)
                places = [f'; did you mean {place!r}?' for place in _places(part, cfg)][:1]
                hint = ''.join(places) or did_you_mean(part, names)
                raise ValueError(f'unknown config key {key!r}: there is no {part!r}{hint}')
            return
        node = node[part]


def _places(word: str, cfg: Config) -> dict[str, Any]:
    """Nested keys of the config with this name, and their values: `lr` -> `optim_wrapper.optimizer.lr`."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items() if isinstance(node, Mapping) else ():
            if key == word:
                yield f'{prefix}{key}', value
            yield from walk(value, f'{prefix}{key}.')

    counting = {*RUNNER_KEYS, *named_parts(cfg)}  # nothing is built from other top-level keys, such as `masks`
    return {place: v for top in cfg if top in counting for place, v in walk(cfg.to_dict()[top], f'{top}.')}


def _lists(node: Any) -> Iterator[list[Any]]:
    """All lists nested in dicts and lists."""
    if isinstance(node, list):
        yield node
    for value in node if isinstance(node, list) else node.values() if isinstance(node, Mapping | Config) else ():
        yield from _lists(value)


_plain_init, _plain_merge = Config.__init__, Config.merge_from_dict


@functools.wraps(_plain_init)
def _init(cfg: Config, *args: Any, **kwargs: Any) -> None:
    """MMEngine's, which also fills in parts, data, scope, workers and TTA of a file that names this module.

    A component of this package is found from any default scope, by a `_scope_` next to its type.
    """
    _plain_init(cfg, *args, **kwargs)
    if (
        _AS_WRITTEN.get()
        or cfg.filename is None
        or __name__ not in (cfg.get('custom_imports') or {}).get('imports', ())
    ):
        return
    fill_in_parts(cfg)
    fill_in_held_out(cfg)
    inferred = fill_in_data(cfg)
    loaders = [loader for split in ('train', 'val', 'test') if (loader := cfg.get(f'{split}_dataloader'))]
    for loader in loaders:
        if 'num_workers' in loader and loader.num_workers is None:
            loader.num_workers = default_workers()
    fill_in_tta(cfg)
    if cfg.get('default_scope') == SCOPE:
        for part in (cfg.get('model'), *(loader.dataset for loader in loaders)):
            if part:
                part.setdefault('_scope_', SCOPE)
    object.__setattr__(cfg, '_classes', class_names(training_data(cfg)) if inferred else None)


@functools.wraps(_plain_merge)
def _merge(cfg: Config, options: dict[str, Any], allow_list_keys: bool = True) -> None:
    """MMEngine's; in a config that `_init` filled in, options of parts and of `data_root` reach where they stand.

    Raises:
        ValueError: The new `data_root` has other classes than the config, whose classes are those of the old one.
    """
    if '_classes' not in vars(cfg):
        _plain_merge(cfg, options, allow_list_keys)
        return
    root = cfg.get('data_root')
    _merge_options(cfg, options, named_parts(cfg), allow_list_keys)
    if 'data_root' in options:
        for data in datasets_of(cfg):
            if 'data_root' in data and data.data_root == root:
                data.data_root = cfg.data_root
        for metric in (metric for split in ('val', 'test') for metric in _metrics(cfg, split)):
            if root and str(metric.get('ann_file')).startswith(os.path.join(root, '')):
                metric.ann_file = None
        fill_in_data(cfg)
        if cfg._classes and cfg._classes != (found := class_names({**training_data(cfg), 'metainfo': None})):
            raise ValueError(
                f'data_root={cfg.data_root!r} has the classes {", ".join(found)}, but those of {root!r} were read with '
                f'the config: {", ".join(cfg._classes)}; set data_root in a config that inherits from it'
            )


Config.__init__, Config.merge_from_dict = _init, _merge
