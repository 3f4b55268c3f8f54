"""Resume a training: find the newest intact checkpoint, and check that it is of the same run."""

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from simmim_plugin.checkpoints.files import NOTE, load_file
from simmim_plugin.datasets.sampling import batch_size_of
from simmim_plugin.engine.runners.longer_run import as_extended, restoring_options
from simmim_plugin.utils.files import printable
from simmim_plugin.utils.runner_protocol import TrainingRunner

LISTED = 5  # differences in a message
# Config keys that may differ when resuming: how things are computed, and where the initial weights came from.
IGNORED = ('with_cp', 'init_cfg', 'on_cpu', '_scope_')


def newest_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The checkpoint of a work dir to resume from: the intact one with the most iterations.

    Damaged checkpoints are logged and skipped.

    Returns:
        Its path; None if the folder has no checkpoint.

    Raises:
        ValueError: There are checkpoints, but none can be read.
    """
    damaged: list[str] = []
    found: list[tuple[int, float, Path]] = []
    for path in Path(folder).glob('*.pth'):
        try:
            checkpoint = load_file(path)
        except ValueError:
            damaged.append(str(path))
            continue
        if isinstance(checkpoint, Mapping) and 'optimizer' in checkpoint:  # else it holds weights only
            found.append((checkpoint['meta']['iter'], path.stat().st_mtime, path))
    for _, _, path in sorted(found, reverse=True):
        if is_intact(path):
            for name in damaged:
                print_log(f'{printable(name)} is damaged and skipped', 'current', logging.WARNING)
            return str(path)
        damaged.append(str(path))
    if damaged:
        raise ValueError(
            f'no checkpoint in {os.fspath(folder)} can be read; damaged: {", ".join(damaged)}. Remove them to start '
            'from scratch, or choose another --work-dir'
        )
    return None


def is_intact(path: str | os.PathLike[str]) -> bool:
    """Whether the checksums of a file of `torch.save` match its bytes, which PyTorch does not verify on loading."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except zipfile.BadZipFile:
        return False


def training_note(runner: TrainingRunner) -> dict[str, Any]:
    """Settings that must not change when a training is resumed, as plain data. Its length may change."""
    cfg = runner.cfg.to_dict()
    batch = batch_size_of(runner.train_dataloader) * runner.world_size
    parts = {name: cfg.get(name) for name in ('optim_wrapper', 'param_scheduler')}
    return dict(batch_of_an_iteration=batch, **parts)


def check_same_training(runner: TrainingRunner, checkpoint: Mapping[str, Any]) -> None:
    """Reject a checkpoint of a run with another model, batch, optimiser or schedule; that may be longer with the run.

    Raises:
        ValueError: They differ; the message lists the differences.
    """
    note = checkpoint.get(NOTE) or {}
    faults: list[str] = []
    options = ''
    if 'model' in note and 'model' in runner.cfg:
        faults += differences(note['model'], runner.cfg.to_dict()['model'], 'model')
    if 'training' in note:
        now = training_note(runner)
        for name, value in note['training'].items():
            if name == 'param_scheduler':
                options = restoring_options(value, now[name], checkpoint, runner)
                value = as_extended(value, now[name], checkpoint, runner)  # noqa: PLW2901
            faults += differences(value, now[name], name)
    if faults:
        more = f' (and {len(faults) - LISTED} more)' if len(faults) > LISTED else ''
        raise ValueError(
            f'the checkpoint is of another training: {"; ".join(faults[:LISTED])}{more}. Resume with the config of the '
            'first run, or start a new training from the weights, without --resume: --cfg-options load_from=CHECKPOINT'
            + (f'. To keep the schedule: --cfg-options {options}' if options else '')
        )


def differences(old: Any, new: Any, name: str) -> list[str]:
    """Differences between two plain values, one sentence each.

    Args:
        old: The value in the checkpoint.
        new: The current value.
        name: Its name in the config.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [key for key in dict.fromkeys((*old, *new)) if key not in IGNORED]
        return [fault for key in keys for fault in differences(old.get(key), new.get(key), f'{name}.{key}')]
    if _is_list(old) and _is_list(new) and len(old) == len(new):
        return [fault for i in range(len(old)) for fault in differences(old[i], new[i], f'{name}[{i}]')]
    if _is_list(old) and _is_list(new):
        return [f'{name} has {len(old)} entries in the checkpoint and {len(new)} now']
    return [] if old == new else [f'{name} is {old!r} in the checkpoint and {new!r} now']


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
