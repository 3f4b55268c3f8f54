"""Progress bar on a terminal."""

import logging
import sys
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from tqdm import tqdm

from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.console import console_handlers
from simmim_plugin.utils.runner_protocol import TrainingRunner


@HOOKS.register_module()
class ProgressHook(Hook):
    """On a terminal, show a bar with rate, time left and loss instead of log lines; the log file keeps all lines.

    Without a terminal nothing changes. Warnings and errors are always shown.
    """

    bar: tqdm | None = None
    priority = 'LOW'  # before ReconstructionHook's summary, after the loss has been read for the log

    def before_train(self, runner: TrainingRunner) -> None:
        """Start the bar."""
        if not (is_main_process() and sys.stderr.isatty()):
            return
        self.handlers = [(handler, handler.level) for handler in console_handlers(runner.logger)]
        for handler, _ in self.handlers:
            handler.setLevel(logging.WARNING)
        self.bar = tqdm(total=runner.max_iters, initial=runner.iter, unit='step', dynamic_ncols=True)

    def after_train_iter(self, runner: TrainingRunner, *args: Any, **kwargs: Any) -> None:
        """Advance the bar; it shows the last logged loss, which needs no device synchronisation."""
        if self.bar is not None:
            losses = runner.message_hub.log_scalars.get('train/loss')
            if losses is not None and len(losses.data[0]):
                self.bar.set_postfix(epoch=runner.epoch + 1, loss=f'{losses.data[0][-1]:.4f}', refresh=False)
            self.bar.update()

    def after_val_epoch(self, runner: TrainingRunner, metrics: dict[str, float] | None = None) -> None:
        """Print the metrics above the bar."""
        if self.bar is not None:
            values = ', '.join(f'{k} {v:.4g}' for k, v in (metrics or {}).items() if isinstance(v, float | int))
            self.bar.write(f'epoch {runner.epoch}: {values}', file=sys.stderr)

    def after_train(self, runner: TrainingRunner) -> None:
        """Close the bar and show log lines again."""
        if self.bar is not None:
            self.bar.close()
            for handler, level in self.handlers:
                handler.setLevel(level)
