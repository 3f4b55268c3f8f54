"""What every iteration leaves for the log, without waiting for the device in between."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer
from torch import Tensor

from simmim_plugin.registry import HOOKS

KEPT_VALUES = 10_000


@HOOKS.register_module()
class SimMIMRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's `RuntimeInfoHook`; losses and gradient norms stay on the device until the log wants them.

    MMEngine's own reads each value in each iteration, and waits for the device each time. Its histories grow without
    an end worth the name (a million values), and adding to one copies it; here they are cut to the last
    `KEPT_VALUES`, which then also is what a `window_size='global'` averages over. With `SimMIMLogProcessor` a log line
    averages over the iterations since the last one, unless the config gives a `window_size`.
    """

    def __init__(self) -> None:
        self.intervals = {1}
        self._since_line: int | None = None  # iterations since the last line of the log; not known yet
        self._pending: list[dict[str, Any]] = []

    def before_train(self, runner: Any) -> None:
        """Learn when the log is written, and ask the optimiser wrapper for gradient norms as tensors."""
        super().before_train(runner)
        self.intervals = {hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)} or {1}
        if hasattr(runner.optim_wrapper, 'keep_grad_norm'):
            runner.optim_wrapper.keep_grad_norm = True

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Keep the iteration's values, and hand them over where a line of the log is due."""
        values = {name: x.detach() if isinstance(x, Tensor) else x for name, x in (outputs or {}).items()}
        wrapper = runner.optim_wrapper
        if getattr(wrapper, 'grad_norm', None) is not None:
            values[wrapper.grad_name], wrapper.grad_norm = wrapper.grad_norm, None
        self._pending.append(values)
        if self._since_line is None:  # the first iteration, which after a resume need not be the first since a line
            self._since_line = min(batch_idx % interval for interval in self.intervals)
        self._since_line += 1
        due = any(self.every_n_inner_iters(batch_idx, interval) for interval in self.intervals)
        if due or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self.flush(runner)
            if getattr(runner.log_processor, 'window_follows_lines', False):
                runner.log_processor.window_size = self._since_line
            self._since_line = 0

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint have the values of all iterations."""
        if self._pending and 'message_hub' in checkpoint:
            self.flush(runner)
            checkpoint['message_hub'] = runner.message_hub.state_dict()

    def after_train(self, runner: Any) -> None:
        """Hand over the rest."""
        self.flush(runner)
        super().after_train(runner)

    def flush(self, runner: Any) -> None:
        """Add the values kept so far to the histories; waits for the device once."""
        tensors = [x for values in self._pending for x in values.values() if isinstance(x, Tensor)]
        read: dict[torch.device, Iterator[float]] = {}
        for device in {x.device for x in tensors}:
            found = [x.reshape(()).float() for x in tensors if x.device == device]
            read[device] = iter(torch.stack(found).tolist())
        hub = runner.message_hub
        for values in self._pending:
            for name, x in values.items():
                hub.update_scalar(f'train/{name}', next(read[x.device]) if isinstance(x, Tensor) else x)
        self._pending.clear()
        for name, history in hub.log_scalars.items():
            if len(history.data[0]) > 2 * KEPT_VALUES:
                hub.log_scalars[name] = HistoryBuffer(*(values[-KEPT_VALUES:] for values in history.data))
