"""Log lines with throughput."""

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import LoggerHook
from mmengine.runner import LogProcessor

from simmim_plugin.datasets.sampling import batch_size_of
from simmim_plugin.registry import LOG_PROCESSORS
from simmim_plugin.utils.arguments import text
from simmim_plugin.utils.runner_protocol import TrainingRunner


@LOG_PROCESSORS.register_module()
class SimMIMLogProcessor(LogProcessor):
    """MMEngine's log line (iteration, rate, ETA, time, loss) plus `img_s`, images per second over all ranks.

    Args:
        mean_pattern: Regular expression for the names of values that are averaged; MMEngine's own, and `error_local`.
        kwargs: See `mmengine.runner.LogProcessor`. Without `window_size` a line averages over the iterations since the
            previous line.
    """

    def __init__(self, mean_pattern: str = r'.*(loss|error|time|data_time|grad_norm).*', **kwargs: Any) -> None:
        text('SimMIMLogProcessor.mean_pattern', mean_pattern, 'a regular expression')
        super().__init__(mean_pattern=mean_pattern, **kwargs)
        self.window_follows_lines = 'window_size' not in kwargs

    def get_log_after_iter(self, runner: TrainingRunner, batch_idx: int, mode: str) -> tuple[dict[str, Any], str]:
        """Return the values and the text of the line."""
        if mode == 'train' and self.window_follows_lines:
            self.window_size = min(batch_idx % interval + 1 for interval in line_intervals(runner))
        line: tuple[dict[str, Any], str] = super().get_log_after_iter(runner, batch_idx, mode)
        return line

    def _collect_scalars(
        self, custom_cfg: list[dict[str, Any]], runner: TrainingRunner, mode: str, reserve_prefix: bool = False
    ) -> dict[str, Any]:
        scalars: dict[str, Any] = super()._collect_scalars(custom_cfg, runner, mode, reserve_prefix)
        prefix = f'{mode}/' if reserve_prefix else ''
        seconds = scalars.get(f'{prefix}time')
        if mode == 'train' and seconds:
            images = batch_size_of(runner.train_dataloader) * get_world_size()
            scalars[f'{prefix}img_s'] = round(images / seconds, 1)
        return scalars


def line_intervals(runner: TrainingRunner) -> set[int]:
    """Intervals in iterations of all hooks that write log lines."""
    return {hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)} or {1}
