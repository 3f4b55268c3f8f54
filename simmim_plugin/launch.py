"""What the command-line tools share: configs, processes, and errors in one line."""

import argparse
import difflib
import inspect
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

from simmim_plugin.checkpoint import load_file
from simmim_plugin.log_processor import batch_size_of

# Top-level keys that mean something to MMEngine: a misspelt one would be ignored in silence.
RUNNER_KEYS = {
    *inspect.signature(Runner.__init__).parameters,
    *('activation_checkpointing', 'compile', 'custom_imports', 'data_root', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn'),
} - {'self', 'cfg'}


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


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add MMEngine's `--cfg-options KEY=VALUE ...`."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='override config values'
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
    for key in cfg:
        if key not in RUNNER_KEYS and (near := difflib.get_close_matches(key, RUNNER_KEYS, 1, 0.85)):
            raise ValueError(f'unknown config key {key!r}; did you mean {near[0]!r}?')
    for key in options or {}:
        _check_option(cfg, key)
    cfg.merge_from_dict(dict(options or {}))
    dataset: Any = cfg.train_dataloader.dataset if cfg.get('train_dataloader') else {}
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'data_root' in dataset and dataset['data_root'] is None:
        dataset.data_root = cfg.get('data_root')
    elif 'data_root' in (options or {}) and dataset.get('data_root') != cfg.data_root:
        raise ValueError(f'data_root={cfg.data_root!r} has no place in {path}, whose dataset is {dataset.get("type")}')
    return cfg


def _check_option(cfg: Config, key: str) -> None:
    node: Any = cfg
    parts = key.split('.')
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
                hint = _did_you_mean_inside(part, cfg) or _did_you_mean(part, names)
                raise ValueError(f'unknown config key {key!r}: there is no {part!r}{hint}')
            return
        node = node[part]


def _did_you_mean(word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word, names, 3, 0.5)
    return f'; did you mean {" or ".join(map(repr, near))}?' if near else ''


def _did_you_mean_inside(word: str, cfg: Config) -> str:
    """Places deeper in the config with that very name: `lr` -> `optim_wrapper.optimizer.lr`."""

    def places(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items() if isinstance(node, Mapping) else ():
            if key == word:
                yield f'{prefix}{key}'
            yield from places(value, f'{prefix}{key}.')

    found = list(places(cfg.to_dict(), ''))[:3]
    return f'; did you mean {" or ".join(map(repr, found))}?' if found else ''


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
    return runner


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
