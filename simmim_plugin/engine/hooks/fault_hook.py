"""Detect numerical faults: skipped steps and loss spikes."""

import logging
import math
import statistics
from collections import deque
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log

from simmim_plugin.engine.hooks.runtime_info_hook import SimMIMRuntimeInfoHook
from simmim_plugin.engine.step_records import SKIPPED, Step
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import number, whole
from simmim_plugin.utils.runner_protocol import TrainingRunner

MAX_LISTED = 10  # skipped steps whose images are listed
MIN_LOSSES = 100  # before the median is meaningful


class TooManySkippedStepsError(RuntimeError):
    """Loss or gradient was not finite for more than `max_in_a_row` consecutive steps."""


@HOOKS.register_module()
class FaultHook(Hook):
    """Count skipped steps of `AutocastOptimWrapper`, abort after too many in a row, and warn about loss spikes.

    The values are checked when `SimMIMRuntimeInfoHook` reads them, which adds no device synchronisation: before each
    log line, at the end of an epoch and before a checkpoint. The images of the first skipped steps are listed in
    `skipped_iter_<number>_rank<number>.txt` in the work dir.

    Args:
        interval: Read the values every `interval` iterations as well. None: do not.
        max_in_a_row: Abort when more consecutive steps than this are skipped.
        spike: Warn when a loss exceeds this multiple of the median.
        window: Number of recent losses in the median.

    Raises:
        ValueError: An argument is out of range, or the training has no `SimMIMRuntimeInfoHook`.
        TooManySkippedStepsError: Too many consecutive steps were skipped; the weights are those before the first.
    """

    def __init__(
        self, interval: int | None = None, max_in_a_row: int = 100, spike: float = 2.0, window: int = 1000
    ) -> None:
        self.interval = None if interval is None else whole('FaultHook.interval', interval, 1)
        self.max_in_a_row = whole('FaultHook.max_in_a_row', max_in_a_row, 1)
        self.spike = number('FaultHook.spike', spike, 1, hint='e.g. 2', ends='()')
        self.losses: deque[float] = deque(maxlen=whole('FaultHook.window', window, 1))
        self.in_a_row = 0

    def before_train(self, runner: TrainingRunner) -> None:
        """Find the hook that reads the values, and register `interval` with it."""
        reader = next((hook for hook in runner.hooks if isinstance(hook, SimMIMRuntimeInfoHook)), None)
        if reader is None:
            raise ValueError(
                "FaultHook needs default_hooks.runtime_info=dict(type='simmim_plugin.SimMIMRuntimeInfoHook')"
            )
        if self.interval is not None:
            reader.intervals.add(self.interval)

    def after_steps_read(self, runner: TrainingRunner, steps: list[Step]) -> None:
        """Count skipped steps and look for loss spikes."""
        spikes = []
        for step in steps:
            loss, skipped = step.values.get('loss', math.nan), step.values.get(SKIPPED)
            if skipped is not None:
                self.in_a_row = self.in_a_row + 1 if skipped else 0
            if skipped:
                self._note(runner, step.iteration, loss, step.paths)
            if skipped or not math.isfinite(loss):
                continue
            if len(self.losses) >= MIN_LOSSES and loss > self.spike * (median := statistics.median(self.losses)):
                spikes.append((loss / median, step.iteration, loss, median))
            self.losses.append(loss)
        if spikes:
            _, iteration, loss, median = max(spikes)
            print_log(
                f'Loss spike: {loss:.4f} at iteration {iteration}, the median of the last {len(self.losses)} is '
                f'{median:.4f} ({len(spikes)} since the last report)',
                'current',
                logging.WARNING,
            )

    def _note(self, runner: TrainingRunner, iteration: int, loss: float, paths: list[str]) -> None:
        total = runner.message_hub.runtime_info.get('skipped_steps', 0) + 1
        runner.message_hub.update_info('skipped_steps', total)
        print_log(
            f'Step {iteration} skipped: loss {loss} or its gradient is not finite ({total} so far, {self.in_a_row} in '
            'a row)',
            'current',
            logging.WARNING,
        )
        if total <= MAX_LISTED:
            listed = '\n'.join([f'loss {loss} at iteration {iteration}, images of this rank:', *paths])
            name = f'skipped_iter_{iteration}_rank{get_rank()}.txt'
            Path(runner.work_dir, name).write_text(f'{listed}\n', encoding='utf-8', errors='surrogateescape')
        if self.in_a_row > self.max_in_a_row:
            last = runner.message_hub.runtime_info.get('last_ckpt')
            raise TooManySkippedStepsError(
                f'{self.in_a_row} steps in a row were skipped, up to iteration {iteration}: loss or gradient was '
                f'not finite. {f"The last good checkpoint is {last}" if last else "There is no checkpoint yet"}. Lower '
                f'the learning rate, or check the images listed in {runner.work_dir}/skipped_iter_*.txt'
            )
