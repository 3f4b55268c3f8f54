"""Prepare a config for this machine, build its runner, and train."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from simmim_plugin.apis.settings import check_settings
from simmim_plugin.checkpoints.files import NOTE, load_file
from simmim_plugin.checkpoints.hubs import is_named
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.datasets.sampling import batch_size_of
from simmim_plugin.engine.runners.longer_run import extend_schedules
from simmim_plugin.engine.runners.mmengine_internals import end_all_workers, set_auto_scale_lr, set_filename
from simmim_plugin.engine.runners.work_dir import check_work_dir, checkpoint_folder, is_resumable, newest_checkpoint
from simmim_plugin.utils.arguments import folders
from simmim_plugin.utils.configs import datasets_of
from simmim_plugin.utils.console import ShortLogRunner
from simmim_plugin.utils.distributed import WAIT, is_first_process, start_process_group
from simmim_plugin.utils.files import check_writable, lock_folder, unlock_folder
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
    """Apply command-line options to a config.

    Args:
        cfg: The config; changed in place.
        config_path: Its file; the default work dir is `work_dirs/<its name>`.
        work_dir: Folder of the results.
        resume: None: start a new training. 'auto': resume from the newest intact checkpoint in the work dir; without
            one, start as configured, with `load_from`. Else the path of a checkpoint.
        amp: bfloat16 autocast, also on CPUs.
        launcher: 'none', 'pytorch' (torchrun) or 'slurm'.
        compiled: Compile the model's forward pass; see `CompileHook`.

    Raises:
        ValueError: The work dir is not writable, none of its checkpoints can be read, or the optimiser wrapper does not
            support `amp`.
        FileNotFoundError: The checkpoint to resume from does not exist.
    """
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(config_path).stem)
    check_writable(cfg.work_dir)
    given = Path(config_path).resolve()
    if given.parent == Path(cfg.work_dir).resolve():  # MMEngine would overwrite it with the full config
        set_filename(cfg, str(given.with_stem(f'{given.stem}_full')))
    cfg.launcher = launcher
    if resume == 'auto':
        _resume_from_newest(cfg)
        if not cfg.resume and is_first_process(launcher):
            print_log(f'--resume: no checkpoint in {cfg.work_dir} yet, starting a new training')
    elif resume is not None:
        if not os.path.isfile(resume):
            raise FileNotFoundError(f'--resume {resume}: no such checkpoint (from {os.getcwd()})')
        cfg.resume, cfg.load_from = True, resume
    elif cfg.get('resume') is True and cfg.get('load_from') is None:
        _resume_from_newest(cfg)
    if isinstance(cfg.get('resume'), str):  # FlexibleRunner would read it unchecked
        cfg.resume, cfg.load_from = True, cfg.resume
    if amp and cfg.get('optim_wrapper'):
        kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
        if str(kind).split('.')[-1] not in ('OptimWrapper', 'AutocastOptimWrapper'):
            raise ValueError(f'--amp needs optim_wrapper.type OptimWrapper or AutocastOptimWrapper, got {kind}')
        cfg.optim_wrapper.update(type='simmim_plugin.AutocastOptimWrapper', on_cpu=True)
        cfg.optim_wrapper.parts = autocast_parts(cfg)
    if compiled:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='simmim_plugin.CompileHook')]
    return cfg


def _resume_from_newest(cfg: Config) -> None:
    """Resume from the newest checkpoint in the work dir; without one, start as configured, with `load_from`."""
    newest = newest_checkpoint(checkpoint_folder(cfg), cfg.work_dir)
    cfg.resume, cfg.load_from = newest is not None, newest or cfg.get('load_from')


@contextmanager
def claimed_work_dir(cfg: Config) -> Iterator[None]:
    """Lock the work dir of a training (rank 0 holds the lock), which must not hold checkpoints of another run.

    Raises:
        ValueError: It does, or another training uses it.
    """
    holds = is_first_process(cfg.launcher) and lock_folder(cfg.work_dir)
    try:
        check_work_dir(cfg)
        yield
    finally:
        if holds:
            unlock_folder(cfg.work_dir)


def autocast_parts(cfg: Config) -> Sequence[str] | None:
    """Parts of the model to autocast: those of the optimiser wrapper, or backbone and neck of a detector.

    Raises:
        ValueError: A detector has neither `backbone` nor `neck` at its top level.
    """
    parts = (cfg.get('optim_wrapper') or {}).get('parts')
    if parts is not None or cfg.get('default_scope') != 'mmdet':
        return parts
    parts = tuple(name for name in ('backbone', 'neck') if cfg.model.get(name) is not None)
    if not parts:
        raise ValueError(
            f"--amp: MMCV's operators do not support bfloat16, and {cfg.model.get('type')} has no backbone or neck of "
            'its own; leave --amp out, or set optim_wrapper.parts'
        )
    return parts


def build_runner(cfg: Config) -> Runner:
    """Build the runner and its training loop; without a GPU also start the process group, which MMEngine cannot.

    `runner_type='FlexibleRunner'` in the config, with a `strategy`, replaces MMEngine's Runner.

    Raises:
        FileNotFoundError: `data_root` is not a folder.
        ValueError: A setting is absurd, `data_root` is not set, the data do not fill one batch, or a checkpoint cannot
            be read.
    """
    check_settings(cfg)
    given = [data['data_root'] for data in datasets_of(cfg) if 'data_root' in data]
    if None in given:
        raise ValueError(
            'data_root is not set; set it in the config, or on the command line: --cfg-options data_root=/path/to/data'
        )
    roots = [root for value in given if value for root in folders('data_root', value)]
    start_process_group(cfg)
    _adapt_to_machine(cfg)
    if cfg.get('strategy') and cfg.get('sync_bn'):  # where FlexibleRunner expects it
        cfg.strategy.setdefault('sync_bn', cfg.sync_bn)
    _check_checkpoint(cfg)
    if gone := [root for root in roots if '://' not in root and not os.path.isdir(root)]:
        raise FileNotFoundError(
            f'data_root={gone[0]!r} is not a folder (from {os.getcwd()}); set data_root in the config, or on the '
            'command line: --cfg-options data_root=/path/to/data'
        )
    runner = RUNNERS.build(cfg) if cfg.get('runner_type', 'Runner') != 'Runner' else ShortLogRunner.from_cfg(cfg)
    if cfg.get('train_dataloader'):
        loader = runner.train_loop.dataloader
        if len(loader) == 0 and not isinstance(loader.sampler, InfiniteSampler):  # that one repeats the images
            raise ValueError(
                f'{len(loader.dataset)} images do not fill one batch of train_dataloader.batch_size='
                f'{batch_size_of(loader)} per rank; lower it: --cfg-options train_dataloader.batch_size='
                f'{max(1, len(loader.dataset) // runner.world_size)}'
            )
        _report_batch(runner, loader)
        for warning in schedule_warnings(cfg):
            print_log(warning, 'current', logging.WARNING)
    return runner


def _adapt_to_machine(cfg: Config) -> None:
    """Set the number of workers, and without a GPU disable what needs one."""
    gpu = torch.cuda.is_available()
    if not gpu:
        cfg.sync_bn = None  # PyTorch supports it on GPUs only
    for loader in (cfg[name] for name in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg.get(name)):
        if not gpu:
            loader.pin_memory = False  # PyTorch would warn
        if loader.get('num_workers', 0) is None:
            loader.num_workers = default_workers()
        if loader.get('num_workers'):
            loader.setdefault('timeout', WAIT)
        else:
            # Without workers PyTorch raises for these, which a dumped config may have.
            loader.persistent_workers, loader.prefetch_factor, loader.timeout = False, None, 0


def _check_checkpoint(cfg: Config) -> None:
    """Raise if the checkpoint to load is missing, damaged, or could run code: MMEngine unpickles anything."""
    if cfg.get('resume') and cfg.get('load_from') is None:
        _resume_from_newest(cfg)
    source = cfg.get('load_from')
    if source is None:
        return
    cfg.load_from = source = os.path.expanduser(source)
    if not is_named(source) and not os.path.exists(source):
        raise FileNotFoundError(
            f'load_from={source!r}: no such file (from {os.getcwd()}); download remote files first, or '
            'set them as checkpoint of model.backbone.init_cfg'
        )
    if not cfg.get('resume'):  # of any kind
        saved = read(source, objects='known')
        content = {'state_dict': saved.state, NOTE: saved.note}
        CheckpointLoader.register_scheme(f'{re.escape(source)}$', lambda *_, **__: dict(content), force=True)
        return
    checkpoint = load_file(source)
    if not is_resumable(checkpoint):
        raise ValueError(
            f'checkpoint {source!r} is none to resume from: meta.epoch and meta.iter do not say where it was '
            'written. To start from its weights: --cfg-options load_from=CHECKPOINT, without --resume'
        )
    if 'config' in checkpoint['meta']:
        raise ValueError(
            f"checkpoint {source!r} has code in meta['config'], which MMEngine would run; current versions do not "
            'write it. Start from its weights instead: --cfg-options load_from=CHECKPOINT'
        )
    extend_schedules(cfg, checkpoint)


class _Counter(Hook):
    """Count the iterations of a training."""

    iterations = 0

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        self.iterations += 1


def run_training(runner: Runner) -> None:
    """Train. A resumed run that is already finished is evaluated: it may have stopped before its last evaluation."""
    counter = _Counter()
    runner.register_hook(counter)
    try:
        runner.train()
        if counter.iterations == 0 and runner.val_loop is not None:
            runner.val_loop.run()
    except Exception:
        raise  # it is reported first: workers that hang must not delay that
    except BaseException:  # such as the exit after a signal
        end_all_workers(runner)
        raise
    end_all_workers(runner)


def _report_batch(runner: Runner, loader: DataLoader[Any]) -> None:
    counts = (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    scale = runner.cfg.get('auto_scale_lr')
    if counts > 1 and scale and scale.get('enable'):
        # MMEngine scales by the batch per iteration, which accumulation multiplies.
        scale = {**scale, 'base_batch_size': scale['base_batch_size'] / counts}
        set_auto_scale_lr(runner, scale)
    batch, by_epoch = batch_size_of(loader), not isinstance(runner.train_loop, IterBasedTrainLoop)
    length = f'{len(loader)} iterations per epoch' if by_epoch else f'{runner.max_iters} iterations'
    print_log(
        f'Total batch {batch * runner.world_size * counts} = {runner.world_size} processes x {batch} images x '
        f'{counts} accumulated; {length}',
        'current',
    )
    if by_epoch and len(loader) < FEW_ITERATIONS:
        sampler: Any = loader.batch_sampler
        dropped = max(0, len(sampler.sampler) - len(loader) * batch)
        print_log(
            f'Only {len(loader)} iterations per epoch'
            + (f', and {dropped} images per rank and epoch are dropped' if dropped else '')
            + f': {"lower train_dataloader.batch_size, or " if batch > 1 else ""}raise train_cfg.max_epochs with its '
            'param_scheduler',
            'current',
            logging.WARNING,
        )


def schedule_warnings(cfg: Config) -> list[str]:
    """Warn about epoch-based schedulers that do not fit `max_epochs`."""
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
                f'param_scheduler: milestones {late} are beyond max_epochs={epochs}; the rate will not drop'
            )
        last_end = max(last_end, scheduler.get('end', epochs))
    if schedulers and last_end < epochs:
        warnings.append(f'param_scheduler ends at epoch {last_end} of {epochs}; the rate is constant from then on')
    if last_end > epochs:
        warnings.append(
            f'param_scheduler continues to epoch {last_end}, beyond max_epochs={epochs}; the rate stops midway'
        )
    return warnings
