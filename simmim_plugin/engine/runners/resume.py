"""Going on with a training: from which checkpoint, and whether it is the same training."""

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from simmim_plugin.checkpoints.files import NOTE, load_file
from simmim_plugin.datasets.sampling import batch_size_of
from simmim_plugin.utils.runner_protocol import TrainingRunner

NAMED = 5  # differences that a message lists
# What may differ between two parts of a training: how it is computed, where weights came from at its start.
IRRELEVANT = ('with_cp', 'init_cfg', 'on_cpu', '_scope_')


def newest_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The checkpoint in a work dir to go on from: of those that can be read whole, the one after most iterations.

    Damaged ones are named in the log and passed over.

    Returns:
        Its path; None where there is none.

    Raises:
        ValueError: There are checkpoints, and none of them can be read.
    """
    damaged: list[str] = []
    found: list[tuple[int, float, Path]] = []
    for path in Path(folder).glob('*.pth'):
        try:
            checkpoint = load_file(path)
        except ValueError:
            damaged.append(str(path))
            continue
        if isinstance(checkpoint, Mapping) and 'optimizer' in checkpoint:  # else weights alone
            found.append((checkpoint['meta']['iter'], path.stat().st_mtime, path))
    for _, _, path in sorted(found, reverse=True):
        if is_whole(path):
            for name in damaged:
                print_log(f'{name} is damaged and passed over', 'current', logging.WARNING)
            return str(path)
        damaged.append(str(path))
    if damaged:
        raise ValueError(
            f'no checkpoint in {os.fspath(folder)} can be read; damaged: {", ".join(damaged)}. Remove them to start '
            'anew, or choose another --work-dir'
        )
    return None


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether every byte of a file of `torch.save` is as written, by its check sums; PyTorch does not compare them."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except zipfile.BadZipFile:
        return False


def training_note(runner: TrainingRunner) -> dict[str, Any]:
    """What must be the same when a training goes on, as plain data; its length may change."""
    cfg = runner.cfg.to_dict()
    batch = batch_size_of(runner.train_dataloader) * runner.world_size
    parts = {name: cfg.get(name) for name in ('optim_wrapper', 'param_scheduler')}
    return dict(batch_of_an_iteration=batch, **parts)


def check_same_training(runner: TrainingRunner, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to go on with another model, batch, optimiser or schedule than the checkpoint's.

    Raises:
        ValueError: They differ; the message tells in what.
    """
    note = checkpoint.get(NOTE) or {}
    faults: list[str] = []
    if 'model' in note and 'model' in runner.cfg:
        faults += differences(note['model'], runner.cfg.to_dict()['model'], 'model')
    if 'training' in note:
        now = training_note(runner)
        for name, value in note['training'].items():
            faults += differences(value, now[name], name)
    if faults:
        more = f' (and {len(faults) - NAMED} more)' if len(faults) > NAMED else ''
        raise ValueError(
            f'the checkpoint is of another training: {"; ".join(faults[:NAMED])}{more}. Resume with the config of the '
            'first run, or start a new training from the weights, without --resume: --cfg-options load_from=CHECKPOINT'
        )


def differences(old: Any, new: Any, name: str) -> list[str]:
    """What of two plain values differs, in words.

    Args:
        old: The checkpoint's value.
        new: The value now.
        name: Of the value, as in a config.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [key for key in dict.fromkeys((*old, *new)) if key not in IRRELEVANT]
        return [fault for key in keys for fault in differences(old.get(key), new.get(key), f'{name}.{key}')]
    if _is_list(old) and _is_list(new) and len(old) == len(new):
        return [fault for i in range(len(old)) for fault in differences(old[i], new[i], f'{name}[{i}]')]
    if _is_list(old) and _is_list(new):
        return [f'{name} has {len(old)} entries in the checkpoint and {len(new)} now']
    return [] if old == new else [f'{name} is {old!r} in the checkpoint and {new!r} now']


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
