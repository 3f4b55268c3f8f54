"""Log lines with images per second."""

from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import LogProcessor

from simmim_plugin.datasets.sampling import batch_size_of
from simmim_plugin.registry import LOG_PROCESSORS


@LOG_PROCESSORS.register_module()
class SimMIMLogProcessor(LogProcessor):
    """MMEngine's log line (iteration, rate, ETA, time, loss) plus `img_s`, the images per second of all processes.

    Args:
        mean_pattern: Names of what is averaged over the last iterations; MMEngine's own, and `error_local`.
        kwargs: MMEngine's.
    """

    def __init__(self, mean_pattern: str = r'.*(loss|error|time|data_time|grad_norm).*', **kwargs: Any) -> None:
        super().__init__(mean_pattern=mean_pattern, **kwargs)
        self.window_follows_lines = 'window_size' not in kwargs  # see SimMIMRuntimeInfoHook

    def _collect_scalars(self, custom_cfg: list[dict], runner: Any, mode: str, reserve_prefix: bool = False) -> dict:
        scalars = super()._collect_scalars(custom_cfg, runner, mode, reserve_prefix)
        prefix = f'{mode}/' if reserve_prefix else ''
        seconds = scalars.get(f'{prefix}time')
        if mode == 'train' and seconds:
            images = batch_size_of(runner.train_dataloader) * get_world_size()
            scalars[f'{prefix}img_s'] = round(images / seconds, 1)
        return scalars
