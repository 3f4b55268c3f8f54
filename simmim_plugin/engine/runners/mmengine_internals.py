"""Access to private attributes of MMEngine and PyTorch: all that an upgrade may break is in this file."""

import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from mmengine.config import Config
from mmengine.runner import BaseLoop, FlexibleRunner, Runner
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter


def set_filename(cfg: Config, filename: str) -> None:
    """Set the name under which MMEngine writes the config into the work dir."""
    object.__setattr__(cfg, '_filename', filename)


def is_resuming(runner: Runner | FlexibleRunner) -> bool:
    """Whether a checkpoint is loaded to resume a training rather than for its weights only."""
    return bool(runner._resume)


def has_seed_per_rank(runner: Runner | FlexibleRunner) -> bool:
    """Whether MMEngine has added the rank to `runner.seed`."""
    return bool(runner._randomness_cfg.get('diff_rank_seed', False))


def set_auto_scale_lr(runner: Runner | FlexibleRunner, setting: Mapping[str, Any]) -> None:
    """Replace `auto_scale_lr` of a built runner."""
    if isinstance(runner, Runner):
        runner.auto_scale_lr = setting
    else:
        runner.strategy._auto_scale_lr = setting


def has_started_workers(loop: Any) -> bool:
    """Whether an `IterBasedTrainLoop` starts worker processes before the hooks; MMEngine up to 0.10.7 does."""
    return getattr(getattr(loop, 'dataloader_iterator', None), '_iterator', None) is not None


def waits_for_batch(frame: FrameType | None, dataset: Any) -> bool:
    """Whether the stack of a frame is inside a loader that waits for, or loads, a batch of the data set."""
    while frame is not None:
        iterator = frame.f_locals.get('self')
        if isinstance(iterator, _BaseDataLoaderIter) and iterator._dataset is dataset:
            return True
        frame = frame.f_back
    return False


def block_in_new_workers(loader: DataLoader[Any], signals: Sequence[signal.Signals]) -> None:
    """Let a loader start its workers with signals blocked, so that none ends them before their `worker_init_fn`."""
    start = loader._get_iterator

    def start_blocked() -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            return start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    loader._get_iterator = start_blocked  # type: ignore[method-assign]


def kill_workers() -> None:
    """End all workers at once, also those that do not answer."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise for the first that ends
    for worker in multiprocessing.active_children():
        worker.kill()


def end_workers(loader: DataLoader[Any]) -> None:
    """End the worker processes of a loader. At exit PyTorch waits up to 5 s for each, one after the other."""
    iterator = getattr(loader, '_iterator', None)  # other loaders have none
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()
        loader._iterator = None


def end_all_workers(runner: Runner | FlexibleRunner) -> None:
    """End the worker processes of all built loops."""
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        if isinstance(loop, BaseLoop):
            end_workers(loop.dataloader)


def skips_steps_itself(optimizer: Optimizer) -> bool:
    """Whether `optimizer.found_inf` makes the optimiser skip a step on the device, as fused ones do."""
    return getattr(optimizer, '_step_supports_amp_scaling', False)
