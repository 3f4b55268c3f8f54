"""Accumulated gradients: checkpoints do not hold them, so none is written between two steps of the optimiser."""

import logging

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from simmim_plugin.engine.runners.train_loop import ResumableTrainLoop
from simmim_plugin.utils.runner_protocol import TrainingRunner


def gradients_are_pending(runner: TrainingRunner) -> bool:
    """Whether gradients are accumulated that the next step will use."""
    return isinstance(runner.optim_wrapper, OptimWrapper) and not runner.optim_wrapper.should_update()


def count_from_the_epoch(runner: TrainingRunner) -> None:
    """Let an epoch end with a step, of fewer iterations if necessary; to be called where an epoch begins.

    MMEngine counts over the whole run, so that the end of an epoch may be between two steps.
    """
    wrapper, batches, done = runner.optim_wrapper, runner.max_iters, runner.iter
    if not isinstance(wrapper, OptimWrapper):
        return
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        batches = len(runner.train_loop.dataloader)
        # MMEngine's own loop always begins with the first batch.
        done = runner.iter - runner.epoch * batches if isinstance(runner.train_loop, ResumableTrainLoop) else 0
    # It looks at the model only to warn, which it has done.
    wrapper.initialize_count_status(nn.Identity(), done, batches)
    if gradients_are_pending(runner):
        print_log(
            f'iteration {runner.iter} is between two steps of accumulated gradients (accumulative_counts='
            f'{wrapper._accumulative_counts}): those before it are lost. Checkpoints of this version are written after '
            'a step',
            'current',
            logging.WARNING,
        )
