"""Write checkpoints atomically and as plain data, and check what is loaded."""

import os
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
from simmim_plugin.engine.runners.mmengine_internals import is_resuming
from simmim_plugin.engine.runners.resume import check_same_training, training_note
from simmim_plugin.models.fit import check_fits
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import whole
from simmim_plugin.utils.configs import innermost
from simmim_plugin.utils.distributed import bare_model
from simmim_plugin.utils.files import PART_SUFFIX, whole_file
from simmim_plugin.utils.runner_protocol import TrainingRunner

BACKEND = 'simmim_whole'  # name among MMEngine's file backends
LAST = 'last_checkpoint'  # MMEngine's name of the file that names the last checkpoint


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
    renamed; `max_keep_ckpts` removes older checkpoints after that.

    Args:
        args: See `mmengine.hooks.CheckpointHook`.
        kwargs: See `mmengine.hooks.CheckpointHook`. Backends other than the local one are used unchanged.

    Raises:
        OSError: A checkpoint cannot be written (the disk is full); earlier checkpoints are untouched.
    """

    backend_args: dict[str, Any] | None
    last_ckpt: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        whole('SimMIMCheckpointHook.interval', self.interval, -1, hint='-1 writes none but the last')
        whole('SimMIMCheckpointHook.max_keep_ckpts', self.max_keep_ckpts, -1, hint='-1 keeps all')
        local = '://' not in str(self.out_dir or '')
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=BACKEND)
        self.meta: dict[str, Any] | None = None  # epoch and iteration, while `_save` writes
        self.kept: list[str] = []  # names of the checkpoints that `max_keep_ckpts` counts, oldest first

    def before_train(self, runner: TrainingRunner) -> None:
        """Restore the list of kept checkpoints, and remove what a killed run left behind."""
        super().before_train(runner)
        self.kept = list(runner.message_hub.runtime_info.get('kept_checkpoints', []))
        self._remove_outdated()
        if is_main_process() and os.path.isdir(self.out_dir):
            for part in Path(self.out_dir).glob(f'.*{PART_SUFFIX}'):
                part.unlink(missing_ok=True)

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
        """Add `checkpoint['simmim_plugin']`, the config of model, pipeline and training, and convert to plain data."""
        # In `_save` FlexibleRunner's counters are one ahead; they are right when others save, after a validation.
        checkpoint['meta'].update(self.meta or dict(epoch=runner.epoch, iter=runner.iter))
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
            fit_checkpoint(model, checkpoint)
            return
        check_fits(model.state_dict(), tensors_of(checkpoint))
        check_same_training(runner, checkpoint)
        if 'message_hub' in checkpoint:
            hub = checkpoint['message_hub']
            hub['log_scalars'] = {name: _from_plain(value) for name, value in hub['log_scalars'].items()}
