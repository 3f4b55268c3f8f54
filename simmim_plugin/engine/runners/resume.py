"""Resume a training: check that a checkpoint is of the same training."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from simmim_plugin.checkpoints.files import NOTE
from simmim_plugin.datasets.sampling import batch_size_of
from simmim_plugin.engine.runners.longer_run import as_extended, restoring_options
from simmim_plugin.utils.configs import type_name
from simmim_plugin.utils.runner_protocol import TrainingRunner

LISTED = 5  # differences in a message
# Config keys that may differ when resuming: how things are computed, and where the initial weights came from.
IGNORED = ('with_cp', 'init_cfg', 'on_cpu', '_scope_')
DEFINING = ('MaskRatioHook', 'ImageSizeHook', 'EMAHook')  # hooks that define what is trained, or what comes out


def training_note(runner: TrainingRunner) -> dict[str, Any]:
    """Settings that must not change when a training is resumed, as plain data. Its length may change."""
    cfg = runner.cfg.to_dict()
    batch = batch_size_of(runner.train_dataloader) * runner.world_size
    parts = {name: cfg.get(name) for name in ('optim_wrapper', 'param_scheduler')}
    data = (cfg.get('train_dataloader') or {}).get('dataset')
    hooks = {}
    for hook in cfg.get('custom_hooks') or ():
        if isinstance(hook, Mapping) and (kind := type_name(hook)) in DEFINING:
            settings = {name: value for name, value in hook.items() if name not in ('type', 'priority')}
            hooks[f'{kind} of {hook["argument"]}' if 'argument' in hook else kind] = settings
    return dict(batch_of_an_iteration=batch, **parts, data=_plain(data), custom_hooks=_plain(hooks))


def _plain(value: Any) -> Any:
    """As JSON; what it cannot hold, such as functions, is named by its type."""
    return json.loads(json.dumps(value, default=lambda each: type(each).__name__, skipkeys=True))


def check_same_training(runner: TrainingRunner, checkpoint: Mapping[str, Any]) -> None:
    """Reject a checkpoint of a run with another model, batch, optimiser, schedule or data; it may be made longer.

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
    return [] if old == new or _is_same_place(old, new) else [f'{name} is {old!r} in the checkpoint and {new!r} now']


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_same_place(old: Any, new: Any) -> bool:
    """Whether two values are paths of one folder or file, such as a relative and an absolute one."""
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    old, new = os.path.expanduser(old), os.path.expanduser(new)
    return os.path.exists(old) and os.path.exists(new) and os.path.samefile(old, new)
