"""What the command-line tools share: configs, processes, and errors in one line."""

import argparse
import difflib
import inspect
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import print_log
from mmengine.runner import Runner, find_latest_checkpoint
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.utils.data import DataLoader

from simmim_plugin.checkpoint_file import load_file
from simmim_plugin.log_processor import batch_size_of
from simmim_plugin.registry import SCOPE

# Top-level keys that mean something to MMEngine: a misspelt one would be ignored in silence.
RUNNER_KEYS = {
    *inspect.signature(Runner.__init__).parameters,
    *('activation_checkpointing', 'compile', 'custom_imports', 'data_root', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn'),
} - {'self', 'cfg'}
FEW_ITERATIONS = 10


@contextmanager
def one_line_errors() -> Iterator[list[str]]:
    """End the program with one line for an error; the traceback goes into a file, so nothing is lost.

    Yields:
        A list of folders for `error.txt`, the last one first; where none can be written, a new temporary file.
    """
    folders: list[str] = []
    try:
        yield folders
    except Exception as error:  # noqa: BLE001 (whatever it is, it is written down and ends the program)
        message = message_of(error)
        if 'TORCHELASTIC_ERROR_FILE' in os.environ:  # torchrun's summary then ends with our message
            get_error_handler().record_exception(RuntimeError(message))
        sys.exit(f'error: {message}\n(traceback: {_write_down(traceback.format_exc(), folders)})')


def _write_down(text: str, folders: list[str]) -> str:
    rank = os.environ.get('RANK')
    for folder in reversed(folders):
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
    """The message without what workers and registries wrap around it."""
    name = type(error).__name__
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text.rsplit(f'{name}: ', 1)[-1].strip() or name


class _Options(DictAction):
    """MMEngine's KEY=VALUE parser, with a message for what is none."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *args: Any) -> None:
        if wrong := [value for value in values if '=' not in value]:
            parser.error(f'--cfg-options wants KEY=VALUE, got {wrong[0]!r}')
        super().__call__(parser, namespace, values, *args)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add MMEngine's `--cfg-options KEY=VALUE ...`."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=_Options, default={}, metavar='KEY=VALUE', help='override config values'
    )


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config, apply `--cfg-options`, and check the keys.

    A top-level `data_root` goes to the training data set where that says `data_root=None`, as the configs here do: to
    set it, in a leaf config or by an option, is enough.

    Args:
        path: The config file.
        options: Dotted keys and values, from `mmengine.config.DictAction`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A key is unknown and looks misspelt, or names no place in the config.
    """
    if not os.path.isfile(path):
        near = sorted(str(p) for p in Path(path).parent.glob('*.py')) if Path(path).parent.is_dir() else []
        raise FileNotFoundError(f'config {path!r} does not exist (from {os.getcwd()}){_did_you_mean(path, near)}')
    cfg = Config.fromfile(path)
    ours = cfg.get('default_scope') == SCOPE
    for key in cfg:
        if key not in RUNNER_KEYS and (near := difflib.get_close_matches(key, RUNNER_KEYS, 1, 0.85)):
            raise ValueError(f'unknown config key {key!r}; did you mean {near[0]!r}?')
        if ours and key not in RUNNER_KEYS and (places := _places(key, cfg)) and cfg[key] not in places.values():
            raise ValueError(f'config key {key!r} does nothing at the top level; did you mean {next(iter(places))!r}?')
    if ours and cfg.get('train_pipeline') and cfg.train_pipeline != training_data(cfg).get('pipeline'):
        print_log(
            f'train_pipeline in {path} is not the pipeline of train_dataloader.dataset, which is the one that counts; '
            'to use it: train_dataloader = dict(dataset=dict(pipeline=train_pipeline))',
            level=logging.WARNING,
        )
    apply_options(cfg, options or {})
    dataset = training_data(cfg)
    if 'data_root' in dataset and dataset['data_root'] is None:
        dataset.data_root = cfg.get('data_root')
    elif 'data_root' in (options or {}) and dataset.get('data_root') != cfg.data_root:
        raise ValueError(f'data_root={cfg.data_root!r} has no place in {path}, whose dataset is {dataset.get("type")}')
    return cfg


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Put `--cfg-options` into a config; those of `train_pipeline` count for the training data.

    Raises:
        ValueError: A key names no place in the config.
    """
    for key in options:
        _check_option(cfg, key)
    cfg.merge_from_dict(dict(options))
    if any(key.split('.')[0] == 'train_pipeline' for key in options):
        training_data(cfg).pipeline = cfg.train_pipeline


def training_data(cfg: Config) -> Any:
    """Config of the training data set itself, inside RepeatDataset and its like; {} if there is none."""
    dataset: Any = cfg.train_dataloader.dataset if cfg.get('train_dataloader') else {}
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def _check_option(cfg: Config, key: str) -> None:
    node: Any = cfg
    parts = key.split('.')
    if parts[0] == 'masks':
        raise ValueError(f'--cfg-options {key}: masks only names recipes; set the one in use, train_pipeline.3')
    for depth, part in enumerate(parts):
        if isinstance(node, list | tuple):
            if not part.isdigit() or int(part) >= len(node):
                raise ValueError(f'--cfg-options {key}: {part!r} is no index into a list of {len(node)}')
            node = node[int(part)]
            continue
        if not isinstance(node, Mapping | Config):
            raise ValueError(f'--cfg-options {key}: {".".join(parts[:depth])} is a plain value, it has no {part!r}')
        if part not in node:
            top = depth == 0 and part in RUNNER_KEYS
            if not top and depth < max(1, len(parts) - 1):  # a new last key is the component's to judge
                names = sorted({*node, *RUNNER_KEYS}) if depth == 0 else sorted(node)
                places = [f'; did you mean {place!r}?' for place in _places(part, cfg)][:1]
                hint = ''.join(places) or _did_you_mean(part, names)
                raise ValueError(f'unknown config key {key!r}: there is no {part!r}{hint}')
            return
        node = node[part]


def _did_you_mean(word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word, names, 3, 0.5)
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''


def _places(word: str, cfg: Config) -> dict[str, Any]:
    """Places deeper in the config with that very name, and their values: `lr` -> `optim_wrapper.optimizer.lr`."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items() if isinstance(node, Mapping) else ():
            if key == 'masks' and not prefix:
                continue  # named recipes: what is set there does nothing
            if key == word and prefix:
                yield f'{prefix}{key}', value
            yield from walk(value, f'{prefix}{key}.')

    return dict(walk(cfg.to_dict(), ''))


def prepare(
    cfg: Config,
    config_path: str,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    launcher: str = 'none',
) -> Config:
    """Put the command line's wishes into the config.

    Args:
        cfg: The config; it is changed.
        config_path: Its file; the default work dir is `work_dirs/<its name>`.
        work_dir: Where results go.
        resume: None: start afresh; 'auto': the last checkpoint in the work dir; else a checkpoint's path.
        amp: bfloat16 autocast, on processors, too.
        launcher: 'none', 'pytorch' (torchrun) or 'slurm'.

    Raises:
        ValueError: The work dir is not writable, or the optimiser wrapper does not go with `amp`.
        FileNotFoundError: The checkpoint to resume from does not exist.
    """
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(config_path).stem)
    check_writable(cfg.work_dir)
    cfg.launcher = launcher
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None
        if resume != 'auto':
            if not os.path.isfile(resume):
                raise FileNotFoundError(f'--resume {resume}: no such checkpoint (from {os.getcwd()})')
            cfg.load_from = resume
    if amp and cfg.get('optim_wrapper'):
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if str(kind).split('.')[-1] not in ('OptimWrapper', 'AutocastOptimWrapper'):
            raise ValueError(f'--amp goes with optim_wrapper.type OptimWrapper or AutocastOptimWrapper, not {kind}')
        cfg.optim_wrapper.update(type='simmim_plugin.AutocastOptimWrapper', on_cpu=True)
    return cfg


def check_writable(folder: str) -> None:
    """Make the folder, and raise ValueError if nothing can be written there."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f'work_dir={folder!r} is not writable ({error.strerror}); choose another with --work-dir'
        ) from error


def build_runner(cfg: Config) -> Runner:
    """Start the process group where MMEngine cannot (no GPU), build the runner and its training loop.

    Raises:
        ValueError: The data do not fill one batch, or a checkpoint cannot be read.
    """
    if cfg.get('launcher', 'none') != 'none' and not torch.cuda.is_available():
        if cfg.launcher != 'pytorch':
            raise ValueError(f'--launcher {cfg.launcher} needs GPUs; without them use tools/dist_train.sh (gloo)')
        torch.distributed.init_process_group('gloo')
        wrapper = dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
        cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}
    if not torch.cuda.is_available():
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name):
                cfg[name].pin_memory = False  # there is no device to pin for; torch would warn
    source = cfg.get('load_from')
    if cfg.get('resume') and source is None:
        source = find_latest_checkpoint(cfg.work_dir)
    if source is not None and os.path.isfile(source):
        load_file(source)  # raises for a damaged file, or one that would run code; MMEngine would unpickle anything
    runner = Runner.from_cfg(cfg)
    if cfg.get('train_dataloader'):
        loader = runner.train_loop.dataloader
        if len(loader) == 0:
            raise ValueError(
                f'{len(loader.dataset)} images do not fill one batch of train_dataloader.batch_size='
                f'{batch_size_of(loader)} per process; set it lower: --cfg-options train_dataloader.batch_size='
                f'{max(1, len(loader.dataset) // runner.world_size)}'
            )
        _report_batch(runner, loader)
        for warning in schedule_warnings(cfg):
            print_log(warning, 'current', logging.WARNING)
    return runner


def schedule_warnings(cfg: Config) -> list[str]:
    """What the epoch-based schedulers of a config do that is hardly meant, given `max_epochs`."""
    epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    schedulers = cfg.get('param_scheduler') or []
    warnings: list[str] = []
    last_end = 0
    if epochs is None:
        return []
    for scheduler in [schedulers] if isinstance(schedulers, Mapping) else schedulers:
        if not scheduler.get('by_epoch', True):
            return []
        if late := [epoch for epoch in scheduler.get('milestones', ()) if epoch >= epochs]:
            warnings.append(
                f'param_scheduler: milestones {late} lie beyond max_epochs={epochs}; the rate will not drop'
            )
        last_end = max(last_end, scheduler.get('end', epochs))
    if schedulers and last_end < epochs:
        warnings.append(
            f'param_scheduler ends at epoch {last_end} of {epochs}; the rate stays where it is from then on'
        )
    return warnings


def _report_batch(runner: Runner, loader: DataLoader) -> None:
    counts = (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    scale = runner.auto_scale_lr
    if counts > 1 and scale and scale.get('enable'):
        # MMEngine scales by the batch per step of the data loader; accumulation makes the real one larger.
        runner.auto_scale_lr = {**scale, 'base_batch_size': scale['base_batch_size'] / counts}
    batch = batch_size_of(loader)
    print_log(
        f'Total batch {batch * runner.world_size * counts} = {runner.world_size} processes x {batch} images x '
        f'{counts} accumulated; {len(loader)} iterations per epoch',
        'current',
    )
    if len(loader) < FEW_ITERATIONS:
        print_log(
            f'Only {len(loader)} iterations per epoch, and up to {batch - 1} images of each are left out: lower '
            'train_dataloader.batch_size, or raise train_cfg.max_epochs with its param_scheduler',
            'current',
            logging.WARNING,
        )
