"""Collect per-iteration scalars for the log without synchronising the device."""

from typing import Any

from mmengine.hooks import RuntimeInfoHook
from mmengine.logging import HistoryBuffer

from simmim_plugin.engine.optimizers.autocast_optim_wrapper import AutocastOptimWrapper
from simmim_plugin.engine.runners.log_processor import line_intervals
from simmim_plugin.engine.step_records import SKIPPED, StepRecords
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.runner_protocol import TrainingRunner

KEPT_VALUES = 10_000


@HOOKS.register_module()
class SimMIMRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's `RuntimeInfoHook`, keeping losses and gradient norms on the device until a log line is due.

    MMEngine's hook reads each value in each iteration, and synchronises the device each time. Its histories grow to a
    million values, and each append copies the history; here they are cut to the last `KEPT_VALUES`, over which
    `window_size='global'` then averages. Hooks with a method `after_steps_read(runner, steps)` receive the values.
    """

    def __init__(self) -> None:
        self.records = StepRecords()

    def before_train(self, runner: TrainingRunner) -> None:
        """Get the intervals of the log lines, and connect the optimiser wrapper to the records."""
        super().before_train(runner)
        self.intervals = line_intervals(runner)
        if isinstance(runner.optim_wrapper, AutocastOptimWrapper):
            runner.optim_wrapper.records = self.records

    def after_train_iter(
        self, runner: TrainingRunner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Keep the iteration's values, and read all pending values when a log line is due."""
        self.records.add(runner.iter + 1, data_batch, outputs)
        due = any(self.every_n_inner_iters(batch_idx, interval) for interval in self.intervals)
        if due or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self.flush(runner)

    def before_save_checkpoint(self, runner: TrainingRunner, checkpoint: dict[str, Any]) -> None:
        """Add the pending values to the checkpoint."""
        if self.records.steps and 'message_hub' in checkpoint:
            self.flush(runner)
            checkpoint['message_hub'] = runner.message_hub.state_dict()

    def after_train(self, runner: TrainingRunner) -> None:
        """Read the remaining values."""
        self.flush(runner)
        super().after_train(runner)

    def flush(self, runner: TrainingRunner) -> None:
        """Add the pending values to the histories; synchronises the device once."""
        steps, hub = self.records.read(), runner.message_hub
        for step in steps:
            hub.update_scalars({f'train/{name}': x for name, x in step.values.items() if name != SKIPPED})
        for name, history in hub.log_scalars.items():
            if len(history.data[0]) > 2 * KEPT_VALUES:
                hub.log_scalars[name] = HistoryBuffer(*(values[-KEPT_VALUES:] for values in history.data))
        if steps:
            runner.call_hook('after_steps_read', steps=steps)
