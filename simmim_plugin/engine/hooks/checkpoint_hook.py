"""Write checkpoints atomically and as plain data, and check what is loaded."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer

from simmim_plugin.checkpoints.files import NOTE, tensors_of
from simmim_plugin.checkpoints.loading import fit_checkpoint
from simmim_plugin.engine.moving_statistics import moving_statistics
from simmim_plugin.engine.runners.accumulation import count_from_the_epoch, gradients_are_pending
from simmim_plugin.engine.runners.longer_run import continue_schedules
from simmim_plugin.engine.runners.mmengine_internals import is_resuming
from simmim_plugin.engine.runners.resume import LISTED, check_same_training, training_note
from simmim_plugin.engine.runners.work_dir import LAST, RUN_ID, has_own_name, run_of
from simmim_plugin.models.fit import asked_for, check_fits
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.configs import innermost
from simmim_plugin.utils.distributed import bare_model
from simmim_plugin.utils.files import PART_SUFFIX, lock_folder, unlock_folder, whole_file
from simmim_plugin.utils.runner_protocol import TrainingRunner

BACKEND = 'simmim_whole'  # name among MMEngine's file backends


class WholeFileBackend(LocalBackend):
    """MMEngine's local backend with atomic writes: a file is complete or does not exist."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file."""
        with whole_file(filepath) as part:
            part.write_bytes(obj)


register_backend(BACKEND, WholeFileBackend, force=True)


def _to_plain(value: Any) -> Any:
    """Convert NumPy scalars to Python's, arrays to tensors, and MMEngine's histories to dicts of tensors."""
    if isinstance(value, HistoryBuffer):
        log_history, count_history = value.data
        histories = dict(history=torch.as_tensor(log_history), counts=torch.as_tensor(count_history))
        return dict(**histories, max_length=value.max_length)
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    return value


def _from_plain(value: Any) -> Any:
    """Convert the dict that `_to_plain` made of a history back to a history."""
    if isinstance(value, Mapping) and 'counts' in value:
        return HistoryBuffer(value['history'].cpu().numpy(), value['counts'].cpu().numpy(), value['max_length'])
    return value


@HOOKS.register_module()
class SimMIMCheckpointHook(CheckpointHook):
    """MMEngine's checkpoint hook with plain data, atomic writes, and checks of what is loaded.

    A checkpoint holds tensors, numbers and strings only, so reading it never runs code. It includes the config of model
    and pipeline: `tools/reconstruct.py CHECKPOINT` needs no config file. It is written under a hidden name, synced and
    renamed; `max_keep_ckpts` removes older checkpoints after that. A training locks its work dir and the folder of its
    checkpoints, and only removes files there that are named like its checkpoints, whatever a checkpoint lists.
    Accumulated gradients are not in a checkpoint: it is written after a step, by iterations up to
    `accumulative_counts - 1` later than `interval`, and every epoch ends with one.

    Args:
        args: See `mmengine.hooks.CheckpointHook`.
        adapt_channels: How `load_from` adapts weights for images of other channels, see `adapt_channels` of
            `models/fit.py`; None: they are an error.
        new_blocks: Number of the model's last blocks that the checkpoint of `load_from` has not, see `Asked` there.
        kwargs: See `mmengine.hooks.CheckpointHook`. Backends other than the local one are used unchanged.

    Raises:
        OSError: A checkpoint cannot be written (the disk is full); earlier checkpoints are untouched.
        ValueError: Another training uses the work dir.
    """

    backend_args: dict[str, Any] | None
    last_ckpt: str | None
    best_ckpt_path: str | None  # MMEngine sets it for one metric,
    best_ckpt_path_dict: dict[str, str | None]  # and this for several

    def __init__(self, *args: Any, adapt_channels: str | None = None, new_blocks: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args:  # MMEngine would raise at the first checkpoint
            raise TypeError(f'SimMIMCheckpointHook has no argument {next(iter(self.args))!r}')
        self.asked = asked_for('SimMIMCheckpointHook.', adapt_channels, new_blocks)
        whole('SimMIMCheckpointHook.interval', self.interval, -1, hint='-1 writes none but the last')
        whole('SimMIMCheckpointHook.max_keep_ckpts', self.max_keep_ckpts, -1, hint='-1 keeps all')
        local = '://' not in str(self.out_dir or '')
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=BACKEND)
        self.is_due = False  # by iterations, and waiting for a step of the optimiser
        self.meta: dict[str, Any] | None = None  # epoch and iteration, while `_save` writes
        self.kept: list[str] = []  # names of the checkpoints that `max_keep_ckpts` counts, oldest first
        self.run: str | None = uuid.uuid4().hex  # None: resumed from a checkpoint without an id, written by others

    def before_train(self, runner: TrainingRunner) -> None:
        """Lock the folders, restore the lists of files to remove later, and remove what a killed run left behind."""
        info = runner.message_hub.runtime_info
        info.pop('keep_ckpt_ids', None)  # MMEngine's own list, by which it would remove files and folders
        super().before_train(runner)
        if is_main_process():
            for folder in self._folders(runner):
                if lock_folder(folder):  # else a run on another machine may be writing
                    self._remove_parts(Path(folder))
        kept = info.get('kept_checkpoints')
        self.kept = [name for name in kept if has_own_name(name, self.filename_tmpl)] if isinstance(kept, list) else []
        if hasattr(self, 'best_ckpt_path'):
            self.best_ckpt_path = self._own_best(self.best_ckpt_path)
        elif hasattr(self, 'best_ckpt_path_dict'):
            self.best_ckpt_path_dict = {key: self._own_best(path) for key, path in self.best_ckpt_path_dict.items()}
        self._remove_outdated()

    def after_run(self, runner: TrainingRunner) -> None:
        """Unlock the folders."""
        if is_main_process():
            for folder in self._folders(runner):
                unlock_folder(folder)

    def _folders(self, runner: TrainingRunner) -> list[str]:
        """The local folders that a training writes checkpoints and their names to."""
        return [folder for folder in {runner.work_dir, str(self.out_dir)} if '://' not in folder]

    def _own_best(self, path: Any) -> str | None:
        """The best checkpoint in the output folder; the noted path is another if the run was copied."""
        name = os.path.basename(path) if isinstance(path, str) else ''
        own = name.startswith('best_') and has_own_name(name, self.filename_tmpl, best=True)
        return self.file_backend.join_path(self.out_dir, name) if own else None

    def _remove_parts(self, folder: Path) -> None:
        for part in folder.glob(f'.*{PART_SUFFIX}'):
            name = part.name.removesuffix(PART_SUFFIX).rpartition('.')[0][1:]
            if name == LAST or has_own_name(name, self.filename_tmpl, best=True):
                part.unlink(missing_ok=True)

    def before_train_epoch(self, runner: TrainingRunner) -> None:
        """Let the epoch end with a step of the optimiser."""
        count_from_the_epoch(runner)

    def after_train_iter(self, runner: TrainingRunner, *args: Any, **kwargs: Any) -> None:
        """Save every `interval` iterations and after the last, unless `by_epoch`."""
        if not self.by_epoch:
            last = self.save_last and self.is_last_train_iter(runner)
            self.is_due |= last or self.every_n_train_iters(runner, self.interval, self.save_begin)
            if self.is_due and not gradients_are_pending(runner):
                self.is_due = False
                runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
                self._save_checkpoint(runner)

    def save_now(self, runner: TrainingRunner, iterations: int) -> str:
        """Write a checkpoint in the middle of an epoch, to resume from.

        Args:
            runner: The runner.
            iterations: Number of iterations done.

        Returns:
            Its path.
        """
        self._save(runner, f'iter_{iterations}.pth', dict(epoch=runner.epoch, iter=iterations))
        return str(self.last_ckpt)

    def _save_checkpoint_with_step(self, runner: TrainingRunner, step: int, meta: dict[str, Any]) -> None:
        self._save(runner, self.filename_tmpl.format(step), meta)

    def _save(self, runner: TrainingRunner, name: str, meta: dict[str, Any]) -> None:
        kept = [*(other for other in self.kept if other != name), name]
        path = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('kept_checkpoints', kept)  # a run that resumes from it removes the oldest
        runner.message_hub.update_info('last_ckpt', path)
        self.meta = dict(meta)
        try:
            runner.save_checkpoint(
                self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
                backend_args=self.backend_args, **self.args,
            )  # fmt: skip
        except OSError as error:
            before = f'; {self.last_ckpt} is intact, continue from it with --resume' if self.last_ckpt else ''
            raise OSError(error.errno, f'checkpoint {path} cannot be written ({error.strerror}){before}') from error
        finally:
            self.meta = None
        self.kept, self.last_ckpt = kept, path
        if is_main_process():
            with whole_file(Path(runner.work_dir, LAST)) as part:
                part.write_text(path, encoding='utf-8')
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        while 0 < self.max_keep_ckpts < len(self.kept):
            path = self.file_backend.join_path(self.out_dir, self.kept.pop(0))
            if is_main_process() and self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def before_save_checkpoint(self, runner: TrainingRunner, checkpoint: dict[str, Any]) -> None:
        """Add `checkpoint['simmim_plugin']`, the config of model, pipeline and training, and convert to plain data.

        Raises:
            ValueError: A weight is not finite.
        """
        # In `_save` FlexibleRunner's counters are one ahead; they are right when others save, after a validation.
        checkpoint['meta'].update(self.meta or dict(epoch=runner.epoch, iter=runner.iter), **{RUN_ID: self.run})
        _check_finite(runner, checkpoint)
        for name in ('message_hub', 'meta'):
            checkpoint[name] = _to_plain(checkpoint[name])
        cfg = runner.cfg.to_dict()
        if 'model' in cfg and 'train_dataloader' in cfg:  # a runner made in Python from built objects has no config
            pipeline = list(innermost(cfg['train_dataloader']['dataset']).get('pipeline', ()))
            checkpoint[NOTE] = dict(model=cfg['model'], pipeline=pipeline, training=training_note(runner))

    def after_load_checkpoint(self, runner: TrainingRunner, checkpoint: dict[str, Any]) -> None:
        """On `resume` reject checkpoints of a different run; on `load_from` adapt the weights."""
        model = bare_model(runner)
        if not is_resuming(runner):
            fit_checkpoint(model, checkpoint, self.asked)
            return
        check_fits(model.state_dict(), tensors_of(checkpoint))
        check_same_training(runner, checkpoint)
        _check_moments(checkpoint)
        self.run = run_of(checkpoint)
        continue_schedules(runner, checkpoint)
        if 'message_hub' in checkpoint:
            hub = checkpoint['message_hub']
            hub['log_scalars'] = {name: _from_plain(value) for name, value in hub['log_scalars'].items()}


def _check_finite(runner: TrainingRunner, checkpoint: Mapping[str, Any]) -> None:
    model = bare_model(runner)
    weights = [*dict(model.named_parameters()), *moving_statistics(model)]
    average = checkpoint.get('ema_state_dict', {})  # holds the raw weights: `state_dict` has the average then
    states = [checkpoint['state_dict'], {name.removeprefix('module.'): value for name, value in average.items()}]
    bad = dict.fromkeys(name for state in states for name in weights if name in state and not _is_finite(state[name]))
    if bad:
        last = runner.message_hub.runtime_info.get('last_ckpt')
        raise ValueError(
            f'{", ".join([*bad][:LISTED])}{" ..." * (len(bad) > LISTED)} are not finite at iteration '
            f'{checkpoint["meta"]["iter"]}, so no checkpoint is written. '
            f'{f"The last one is {last}" if last else "There is none yet"}; lower the learning rate'
        )


def _is_finite(weight: torch.Tensor) -> bool:
    return bool(weight.isfinite().all())


def _check_moments(checkpoint: Mapping[str, Any]) -> None:
    optimizer = checkpoint.get('optimizer', {})
    groups, states = optimizer.get('param_groups', ()), optimizer.get('state', {})
    has_moments = any('betas' in group or group.get('momentum') for group in groups)
    if has_moments and (not states or not all(states.values())):
        raise ValueError(
            'the state of the optimiser is missing in the checkpoint, in whole or in part; the training would go on '
            'with other steps. Start a new training from the weights, without --resume: --cfg-options '
            'load_from=CHECKPOINT'
        )
