"""What the command-line tools share: processes, runners, and errors in one line."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.datasets.sampling import batch_size_of
from simmim_plugin.engine.runners.mmengine_internals import end_all_workers, set_auto_scale_lr, set_filename
from simmim_plugin.engine.runners.resume import newest_checkpoint
from simmim_plugin.utils.configs import datasets_of
from simmim_plugin.utils.console import ShortLogRunner
from simmim_plugin.utils.distributed import WAIT, start_process_group
from simmim_plugin.utils.files import check_writable
from simmim_plugin.utils.hardware import default_workers

FEW_ITERATIONS = 10


def prepare(
    cfg: Config,
    config_path: str,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    launcher: str = 'none',
    compiled: bool = False,
) -> Config:
    """Put the command line's wishes into the config.

    Args:
        cfg: The config; it is changed.
        config_path: Its file; the default work dir is `work_dirs/<its name>`.
        work_dir: Where results go.
        resume: None: start afresh; 'auto': go on after the newest checkpoint in the work dir that is whole, and where
            there is none start as the config says, with its `load_from`; else a checkpoint's path.
        amp: bfloat16 autocast, on processors, too.
        launcher: 'none', 'pytorch' (torchrun) or 'slurm'.
        compiled: Compile the model's forward pass; see `CompileHook`.

    Raises:
        ValueError: The work dir is not writable, none of its checkpoints can be read, or the optimiser wrapper does not
            go with `amp`.
        FileNotFoundError: The checkpoint to resume from does not exist.
    """
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(config_path).stem)
    check_writable(cfg.work_dir)
    given = Path(config_path).resolve()
    if given.parent == Path(cfg.work_dir).resolve():  # where MMEngine would write all of the config under its name
        set_filename(cfg, str(given.with_stem(f'{given.stem}_full')))
    cfg.launcher = launcher
    if resume == 'auto':
        newest = newest_checkpoint(cfg.work_dir)
        cfg.resume, cfg.load_from = newest is not None, newest or cfg.get('load_from')
        if newest is None and os.environ.get('RANK', '0') == '0':
            print_log(f'--resume: no checkpoint in {cfg.work_dir} yet, starting anew')
    elif resume is not None:
        if not os.path.isfile(resume):
            raise FileNotFoundError(f'--resume {resume}: no such checkpoint (from {os.getcwd()})')
        cfg.resume, cfg.load_from = True, resume
    if isinstance(cfg.get('resume'), str):  # FlexibleRunner would read it unchecked
        cfg.resume, cfg.load_from = True, cfg.resume
    if amp and cfg.get('optim_wrapper'):
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if str(kind).split('.')[-1] not in ('OptimWrapper', 'AutocastOptimWrapper'):
            raise ValueError(f'--amp goes with optim_wrapper.type OptimWrapper or AutocastOptimWrapper, not {kind}')
        cfg.optim_wrapper.update(type='simmim_plugin.AutocastOptimWrapper', on_cpu=True)
        cfg.optim_wrapper.parts = autocast_parts(cfg)
    if compiled:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='simmim_plugin.CompileHook')]
    return cfg


def autocast_parts(cfg: Config) -> Sequence[str] | None:
    """Parts of the model that autocast goes into: those of the optimiser wrapper, and for detectors what can.

    Raises:
        ValueError: A detector without `backbone` or `neck` at its top level.
    """
    parts = (cfg.get('optim_wrapper') or {}).get('parts')
    if parts is not None or cfg.get('default_scope') != 'mmdet':
        return parts
    parts = tuple(name for name in ('backbone', 'neck') if cfg.model.get(name) is not None)
    if not parts:
        raise ValueError(
            f"--amp: MMCV's operators do not know bfloat16, and {cfg.model.get('type')} has no backbone or neck of its "
            'own to use it in; leave --amp out, or name parts by optim_wrapper.parts'
        )
    return parts


def build_runner(cfg: Config) -> Runner:
    """Start the process group where MMEngine cannot (no GPU), build the runner and its training loop.

    The config's `runner_type` names another one than Runner: FlexibleRunner, with a `strategy`.

    Raises:
        FileNotFoundError: `data_root` is no folder.
        ValueError: It is not set, the data do not fill one batch, or a checkpoint cannot be read.
    """
    roots = [data['data_root'] for data in datasets_of(cfg) if 'data_root' in data]
    if None in roots:
        raise ValueError(
            'data_root is not set; set it in the config, or on the command line: --cfg-options data_root=/path/to/data'
        )
    start_process_group(cfg)
    _suit_machine(cfg)
    if cfg.get('strategy') and cfg.get('sync_bn'):  # FlexibleRunner looks for it there
        cfg.strategy.setdefault('sync_bn', cfg.sync_bn)
    _check_checkpoint(cfg)
    if gone := [root for root in roots if root and '://' not in root and not os.path.isdir(os.path.expanduser(root))]:
        raise FileNotFoundError(
            f'data_root={gone[0]!r} is not a folder (from {os.getcwd()}); set data_root in the config, or on the '
            'command line: --cfg-options data_root=/path/to/data'
        )
    runner = RUNNERS.build(cfg) if cfg.get('runner_type', 'Runner') != 'Runner' else ShortLogRunner.from_cfg(cfg)
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


def _suit_machine(cfg: Config) -> None:
    """Workers by the cores, and without a GPU nothing that wants one."""
    gpu = torch.cuda.is_available()
    if not gpu:
        cfg.sync_bn = None  # PyTorch's works on GPUs only
    for loader in (cfg[name] for name in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg.get(name)):
        if not gpu:
            loader.pin_memory = False  # there is no device to pin for; torch would warn
        if loader.get('num_workers', 0) is None:
            loader.num_workers = default_workers()
        if loader.get('num_workers'):
            loader.setdefault('timeout', WAIT)
        else:
            loader.persistent_workers, loader.prefetch_factor = False, None  # PyTorch refuses them without workers


def _check_checkpoint(cfg: Config) -> None:
    """Raise for a checkpoint to start from that is missing, damaged, or would run code: MMEngine unpickles anything."""
    if cfg.get('resume') and cfg.get('load_from') is None:
        cfg.load_from = newest_checkpoint(cfg.work_dir)
    source = cfg.get('load_from')
    if source is not None:
        source = os.path.expanduser(source)
        if not os.path.isfile(source):
            raise FileNotFoundError(
                f'load_from={source!r}: no such file (from {os.getcwd()}); download what lies elsewhere first, or give '
                'it as checkpoint of model.backbone.init_cfg'
            )
        cfg.load_from = source
        meta = load_file(source).get('meta')
        if cfg.get('resume') and isinstance(meta, Mapping) and 'config' in meta:
            raise ValueError(
                f"checkpoint {source!r} has a program as its meta['config'], which MMEngine would run; no training of "
                'today writes such. Start from its weights instead: --cfg-options load_from=CHECKPOINT'
            )


class _Counter(Hook):
    """Whether the training loop did anything."""

    iterations = 0

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        self.iterations += 1


def run_training(runner: Runner) -> None:
    """Train. A finished run that is resumed is evaluated again: it may have been stopped before its last evaluation."""
    counter = _Counter()
    runner.register_hook(counter)
    try:
        runner.train()
        if counter.iterations == 0 and runner.val_loop is not None:
            runner.val_loop.run()
    finally:
        end_all_workers(runner)


def _report_batch(runner: Runner, loader: DataLoader) -> None:
    counts = (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    scale = runner.cfg.get('auto_scale_lr')
    if counts > 1 and scale and scale.get('enable'):
        # MMEngine scales by the batch per step of the data loader; accumulation makes the real one larger.
        scale = {**scale, 'base_batch_size': scale['base_batch_size'] / counts}
        set_auto_scale_lr(runner, scale)
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
    if last_end > epochs:
        warnings.append(
            f'param_scheduler goes on to epoch {last_end}, beyond max_epochs={epochs}; the rate stops midway'
        )
    return warnings
