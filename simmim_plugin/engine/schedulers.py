"""Learning rate schedules of the SimMIM reference implementation."""

import math
from typing import Any

from mmengine.optim import LinearLR
from mmengine.optim.scheduler import _ParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin

from simmim_plugin.registry import PARAM_SCHEDULERS
from simmim_plugin.utils.arguments import number, whole

PART = 'it is a part of the schedule, which ends at `end`'


@PARAM_SCHEDULERS.register_module()
class LinearWarmupLR(LinearLR):
    """MMEngine's `LinearLR`, reaching the full rate at the first iteration after the warm-up, as in the reference.

    At iteration t of a warm-up over T: `lr * (start_factor + (1 - start_factor) * t / T)`, t = 0 ... T. MMEngine's
    scheduler reaches it one iteration early, at T - 1.

    Args:
        args: See `mmengine.optim.LinearLR`.
        end: Length of the warm-up plus `begin`, in iterations, or in epochs with `convert_to_iter_based=True`.
        kwargs: See `mmengine.optim.LinearLR`.

    Raises:
        ValueError: `end` is not a whole number of at least 1.
    """

    def __init__(self, *args: Any, end: int, **kwargs: Any) -> None:
        super().__init__(*args, end=whole('LinearWarmupLR.end', end, 1) + 1, **kwargs)

    @classmethod
    def build_iter_from_epoch(cls, *args: Any, end: float, **kwargs: Any) -> Any:
        """Build it from lengths in epochs."""
        number('LinearWarmupLR.end', end, 0, ends='()')
        return super().build_iter_from_epoch(*args, end=end, **kwargs)


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):
    """Fine-tuning schedule of the reference: linear warm-up, then a cosine that is not shifted by it, above one floor.

    At iteration t, with T iterations in all and W of warm-up, where floor and start are `floor_ratio` and `start_ratio`
    of the highest rate of all parameter groups: `start + (lr - start) * t / W` for t < W, then
    `floor + (lr - floor) * (1 + cos(pi * t / T)) / 2`.
    So the rate drops slightly at the end of the warm-up, and layers with a lower rate have the same floor.

    Args:
        optimizer: Optimiser or wrapper.
        warmup: Length of the warm-up, in iterations, or in epochs with `convert_to_iter_based=True`.
        end: Length of the schedule, in the same units.
        floor_ratio: Lowest rate, as a fraction of the highest group's, so that it scales with the total batch.
        start_ratio: Rate at the start of the warm-up, as a fraction of the same; None: `floor_ratio`.
        kwargs: `by_epoch`, `last_step` and `verbose`, see `mmengine.optim.CosineAnnealingLR`.

    Raises:
        ValueError: An argument is out of range, or the warm-up is longer than the schedule.
    """

    def __init__(
        self,
        optimizer: Any,
        warmup: int,
        end: int,
        floor_ratio: float = 0.0,
        start_ratio: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.length = number('WarmupCosineLR.end', end, 0, ends='()')
        self.warmup = number('WarmupCosineLR.warmup', warmup, 0, end, PART)
        self.floor_ratio = number('WarmupCosineLR.floor_ratio', floor_ratio, 0, 1)
        start = floor_ratio if start_ratio is None else start_ratio
        self.start_ratio = number('WarmupCosineLR.start_ratio', start, 0, 1)
        super().__init__(optimizer, end=end, **kwargs)

    @classmethod
    def build_iter_from_epoch(
        cls, optimizer: Any, warmup: int, end: int, epoch_length: int, by_epoch: bool = True, **kwargs: Any
    ) -> 'WarmupCosineLR':
        """Build it from lengths in epochs."""
        number('WarmupCosineLR.end', end, 0, ends='()')
        number('WarmupCosineLR.warmup', warmup, 0, end, PART)
        return cls(optimizer, warmup * epoch_length, end * epoch_length, by_epoch=False, **kwargs)

    def _get_value(self) -> list[float]:
        step = self.last_step
        warming = step < self.warmup
        share = step / self.warmup if warming else (1 + math.cos(math.pi * step / self.length)) / 2
        # MMEngine's wrapper appends a group to the optimiser's, which is not scaled to the batch.
        optimizer: Any = getattr(self.optimizer, 'optimizer', self.optimizer)
        lowest = self.start_ratio if warming else self.floor_ratio
        floor = lowest * max(self.base_values[: len(optimizer.param_groups)])
        return [floor + (base - floor) * share for base in self.base_values]
