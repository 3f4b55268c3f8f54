"""Faults in the numbers: steps that were skipped, and losses far above the others."""

import logging
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from torch import Tensor

from simmim_plugin.registry import HOOKS

WRITTEN_DOWN = 10  # skipped steps whose images are
ENOUGH = 100  # losses that make a median


class TooManySkippedStepsError(RuntimeError):
    """Loss or gradient were not finite for more than `max_in_a_row` steps."""


@HOOKS.register_module()
class FaultHook(Hook):
    """Count the steps that `AutocastOptimWrapper` skipped, stop after many in a row, and tell spikes of the loss.

    It looks where a line of the log is due, so that nothing waits for the device in between. The images of the first
    skipped steps are listed in `skipped_iter_<number>_rank<number>.txt` in the work dir.

    Args:
        interval: Iterations between looks; None: where the log has a line.
        max_in_a_row: Stop when more steps than these are skipped one after the other.
        spike: A loss of so many times the median is told.
        window: Losses that the median is of, the last ones.

    Raises:
        TooManySkippedStepsError: The weights are those from before the first of these steps.
    """

    priority = 'LOW'

    def __init__(
        self, interval: int | None = None, max_in_a_row: int = 100, spike: float = 2.0, window: int = 1000
    ) -> None:
        for name, value in (('interval', interval), ('max_in_a_row', max_in_a_row), ('window', window)):
            if value is not None and value < 1:
                raise ValueError(f'{name}={value} of FaultHook must be positive')
        if spike <= 1:
            raise ValueError(f'spike={spike} of FaultHook must be above 1, such as 2')
        self.interval, self.max_in_a_row, self.spike = interval, max_in_a_row, spike
        self.losses: deque[float] = deque(maxlen=window)
        self.in_a_row = 0
        self._pending: list[tuple[int, Tensor | None, Tensor, list[str]]] = []

    def before_train(self, runner: Any) -> None:
        """Learn when the log is written."""
        lines = {hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)} or {1}
        self.intervals = lines if self.interval is None else {self.interval}

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Keep the iteration's values, and look at them where it is time."""
        loss = (outputs or {}).get('loss')
        if loss is not None:
            wrapper, skipped = runner.optim_wrapper, None  # None: gradients are accumulated, there was no step
            if getattr(wrapper, 'skipped', None) is not None:
                skipped, wrapper.skipped = wrapper.skipped, None
            self._pending.append((runner.iter + 1, skipped, loss.detach(), paths_of(data_batch)))
        due = any(self.every_n_inner_iters(batch_idx, interval) for interval in self.intervals)
        if due or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self._look(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint have the count of all skipped steps."""
        if self._pending and 'message_hub' in checkpoint:
            self._look(runner)
            checkpoint['message_hub'] = runner.message_hub.state_dict()

    def _look(self, runner: Any) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        flags = [torch.zeros(()) if skipped is None else skipped for _, skipped, _, _ in pending]
        both = torch.stack([torch.stack([flag.to(loss.device), loss]) for flag, (_, _, loss, _) in zip(flags, pending)])
        spikes = []
        for (iteration, flag, _, paths), (skipped, loss) in zip(pending, both.tolist()):
            if flag is not None:
                self.in_a_row = self.in_a_row + 1 if skipped else 0
            if skipped:
                self._note(runner, iteration, loss, paths)
            if skipped or not math.isfinite(loss):
                continue
            if len(self.losses) >= ENOUGH and loss > self.spike * (median := statistics.median(self.losses)):
                spikes.append((loss / median, iteration, loss, median))
            self.losses.append(loss)
        if spikes:
            _, iteration, loss, median = max(spikes)
            print_log(
                f'Loss spike: {loss:.4f} at iteration {iteration}, the median of the last {len(self.losses)} is '
                f'{median:.4f} ({len(spikes)} such since the last look)',
                'current',
                logging.WARNING,
            )

    def _note(self, runner: Any, iteration: int, loss: float, paths: list[str]) -> None:
        total = runner.message_hub.runtime_info.get('skipped_steps', 0) + 1
        runner.message_hub.update_info('skipped_steps', total)
        print_log(
            f'Step {iteration} skipped: loss {loss} or its gradient is not finite ({total} so far, {self.in_a_row} in '
            'a row)',
            'current',
            logging.WARNING,
        )
        if total <= WRITTEN_DOWN:
            listed = '\n'.join([f'loss {loss} at iteration {iteration}, images of this process:', *paths])
            name = f'skipped_iter_{iteration}_rank{get_rank()}.txt'
            Path(runner.work_dir, name).write_text(f'{listed}\n', encoding='utf-8', errors='surrogateescape')
        if self.in_a_row > self.max_in_a_row:
            last = runner.message_hub.runtime_info.get('last_ckpt')
            raise TooManySkippedStepsError(
                f'{self.in_a_row} steps in a row were skipped, up to iteration {iteration}, as loss or gradient were '
                f'not finite. {f"The last good checkpoint is {last}" if last else "There is no checkpoint yet"}. Lower '
                f'the learning rate, or look at the images listed in {runner.work_dir}/skipped_iter_*.txt'
            )


def paths_of(batch: Any) -> list[str]:
    """Paths of the images of a batch, ours or the frameworks', if it knows them."""
    if not isinstance(batch, dict):
        return []
    samples = batch.get('data_samples') or []
    return list(batch.get('img_path') or [sample.img_path for sample in samples if hasattr(sample, 'img_path')])
