"""Make a training longer when it is resumed: schedules that ended with it end with it again."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop

from simmim_plugin.utils.runner_protocol import TrainingRunner

FORMER = 'former_lengths'  # runtime info: [epochs, iterations] of a training before it was made longer


class Length(NamedTuple):
    """Length of a training; one by iterations has one epoch."""

    epochs: int
    iterations: int


def length_of(checkpoint: Mapping[str, Any]) -> Length | None:
    """Length of the training that wrote a checkpoint, if it is noted."""
    info = runtime_info(checkpoint)
    epochs, iterations = (int(info.get(name) or 0) for name in ('max_epochs', 'max_iters'))
    return Length(epochs, iterations) if epochs > 0 and iterations > 0 else None


def runtime_info(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """MMEngine's facts about the run of a checkpoint; {} if there are none."""
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, Mapping) else None
    return info if isinstance(info, dict) else {}


def extended(schedulers: Any, old: Length, new: Length) -> Any:
    """Configs of schedulers, in which `end` or `T_max` moves with the end of the training; a warm-up's does not."""
    schedulers = copy.deepcopy(schedulers)
    for scheduler in _listed(schedulers):
        before, now = (length[not scheduler.get('by_epoch', True)] for length in (old, new))
        begin = scheduler.get('begin', 0)
        if scheduler.get('start_factor', 1) >= scheduler.get('end_factor', 1):
            if scheduler.get('end') == before:
                scheduler['end'] = now
            if scheduler.get('T_max') == before - begin:
                scheduler['T_max'] = now - begin
    return schedulers


def extend_schedules(cfg: Config, checkpoint: Mapping[str, Any]) -> None:
    """Extend the schedulers of a config that resumes a checkpoint of a shorter training, before the runner is built."""
    old, loop = length_of(checkpoint), cfg.get('train_cfg') or {}
    epochs, iterations = loop.get('max_epochs'), loop.get('max_iters')
    if old is None or not (epochs or iterations):
        return
    new = Length(epochs, epochs * old.iterations // old.epochs) if epochs else Length(1, iterations or 0)
    if not _is_longer(old, new):  # it may have been extended by an earlier start of the same command
        for former in (*(Length(*pair) for pair in runtime_info(checkpoint).get(FORMER, ())), old):
            cfg.param_scheduler = extended(cfg.get('param_scheduler'), former, new)


def as_extended(noted: Any, now: Any, checkpoint: Mapping[str, Any], runner: TrainingRunner) -> Any:
    """The schedulers in a checkpoint as this longer training has them: ends moved with it, and milestones ahead."""
    old, new = length_of(checkpoint), Length(runner.max_epochs, runner.max_iters)
    if old is None or not _is_longer(new, old) or len(_listed(noted)) != len(_listed(now)):
        return noted
    result, longer = copy.deepcopy(noted), extended(noted, old, new)
    for scheduler, candidate, current in zip(_listed(result), _listed(longer), _listed(now)):
        scheduler.update({key: candidate[key] for key in ('end', 'T_max') if candidate.get(key, 0) == current.get(key)})
        done = checkpoint['meta']['epoch' if scheduler.get('by_epoch', True) else 'iter']
        passed = [[x for x in part.get('milestones', ()) if x < done] for part in (scheduler, current)]
        if 'milestones' in scheduler and passed[0] == passed[1]:
            scheduler['milestones'] = current.get('milestones')
    return result


def restoring_options(noted: Any, now: Any, checkpoint: Mapping[str, Any], runner: TrainingRunner) -> str:
    """The `--cfg-options` with which the schedule is that of the checkpoint; '' if options cannot do it."""
    old, new = length_of(checkpoint), Length(runner.max_epochs, runner.max_iters)
    if old is not None and _is_longer(old, new) and FORMER in runtime_info(checkpoint):
        return f'train_cfg.{_setting(runner, old)}'
    if not isinstance(noted, list) or not isinstance(now, list) or len(noted) != len(now):
        return ''
    pairs = [(i, key, value) for i, part in enumerate(noted) for key, value in part.items() if now[i].get(key) != value]
    return ' '.join(f'param_scheduler.{i}.{key}={value}'.replace(' ', '') for i, key, value in pairs)


def continue_schedules(runner: TrainingRunner, checkpoint: dict[str, Any]) -> None:
    """Let the rates of a training that is longer now go on as if it had had this length from its start.

    MMEngine takes the state from the checkpoint, which ends with the shorter training even where the config has no
    `end`. Here the fresh schedulers are stepped up to the checkpoint, and replace states and rates in it.

    Args:
        runner: The runner, whose schedulers have not been stepped.
        checkpoint: The checkpoint to resume from; changed in place.

    Raises:
        ValueError: A scheduler follows the metrics of the validation, which are not known any more.
    """
    old, new = length_of(checkpoint), Length(runner.max_epochs, runner.max_iters)
    if old is None or not _is_longer(new, old):
        return
    info, hub = runtime_info(checkpoint), checkpoint['message_hub']
    info[FORMER] = [*info.get(FORMER, ()), list(old)]
    hub['resumed_keys'][FORMER] = True
    for hook in runner.hooks:
        if type(hook).__name__ == 'MaskRatioHook' and getattr(hook, 'until', 0) is None:
            print_log(
                f'The ramp of {getattr(hook, "argument", "")} now ends at iteration {new.iterations} '
                f'({old.iterations} before)',
                'current',
            )
    schedulers = runner.param_schedulers
    if not schedulers:
        return
    if not isinstance(schedulers, list) or any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers):
        raise ValueError(
            f'the schedule cannot be extended to {_setting(runner, new)}, since it depends on more than the iteration: '
            f'resume with --cfg-options train_cfg.{_setting(runner, old)}, or start a new training from the weights, '
            'without --resume: --cfg-options load_from=CHECKPOINT'
        )
    _step(runner, checkpoint['meta'])
    state = checkpoint['optimizer']
    groups = [*state['param_groups'], state.get('base_param_settings')]
    before = groups[0]['lr']
    for saved, group in zip(groups, runner.optim_wrapper.param_groups):
        saved.update({name: value for name, value in group.items() if name != 'params'})
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
    print_log(
        f'{_setting(runner, new)} ({_setting(runner, old)} before), and the schedule ends with it: the rate goes on '
        f'with {groups[0]["lr"]:.3g}, that of a training of this length ({before:.3g} in the checkpoint)',
        'current',
    )


def _step(runner: TrainingRunner, meta: Mapping[str, Any]) -> None:
    """Step the schedulers as MMEngine's hook does in as many iterations and epochs."""
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    batches = len(runner.train_dataloader)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the optimiser is not stepped
        for done in range(1, meta['iter'] + 1):
            ends = by_epoch and done % batches == 0 and done // batches <= meta['epoch']
            for scheduler in runner.param_schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
            for scheduler in runner.param_schedulers if ends else ():
                if scheduler.by_epoch:
                    scheduler.step()


def _is_longer(one: Length, other: Length) -> bool:
    by_iterations = one.epochs == other.epochs == 1
    return one.iterations > other.iterations if by_iterations else one.epochs > other.epochs


def _setting(runner: TrainingRunner, length: Length) -> str:
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return f'max_epochs={length.epochs}'
    return f'max_iters={length.iterations}'


def _listed(schedulers: Any) -> list[Any]:
    listed = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    return [part for part in listed if isinstance(part, Mapping)] if isinstance(listed, list | tuple) else []
