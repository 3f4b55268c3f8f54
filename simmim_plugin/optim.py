"""Optimisation: bfloat16 autocast without a scaler, the reference's schedules and its decay groups."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import LinearLR, OptimWrapper
from mmengine.optim.scheduler import _ParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import OPTIMIZERS
from torch import nn

from simmim_plugin.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, PARAM_SCHEDULERS

# Parameters without weight decay whatever their shape, by the end of their name.
NO_DECAY_NAMES = ('cls_token', 'pos_embed')


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Autocast in the forward pass: no gradient scaler (bfloat16 has float32's range), parameters stay float32.

    MMEngine's `AmpOptimWrapper` refuses to run without an accelerator and scales gradients by default.

    Args:
        on_cpu: Autocast on processors, too. They gain from it only with AVX512-BF16 or AMX instructions.
        kwargs: See `mmengine.optim.OptimWrapper`.
    """

    def __init__(self, on_cpu: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.on_cpu = on_cpu

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Gradient accumulation as in MMEngine, and autocast."""
        device = next(model.parameters()).device.type
        enabled = device != 'cpu' or self.on_cpu
        with super().optim_context(model), torch.autocast(device, torch.bfloat16, enabled=enabled):
            yield


@PARAM_SCHEDULERS.register_module()
class LinearWarmupLR(LinearLR):
    """MMEngine's `LinearLR`, reaching the full rate at the first iteration after the warm-up, as the reference does.

    At iteration t of a warm-up over T: `lr * (start_factor + (1 - start_factor) * t / T)`, t = 0 ... T. MMEngine's own
    is there one iteration early, at T - 1.

    Args:
        args: See `mmengine.optim.LinearLR`.
        end: Length of the warm-up plus `begin`, in iterations, or in epochs with `convert_to_iter_based=True`.
        kwargs: See `mmengine.optim.LinearLR`.
    """

    def __init__(self, *args: Any, end: int, **kwargs: Any) -> None:
        super().__init__(*args, end=end + 1, **kwargs)


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):
    """The reference's fine-tuning schedule: linear warm-up, then a cosine that is not shifted by it, above one floor.

    At iteration t, with T iterations in all, W of warm-up and `floor`, the same for every parameter group:
    `floor + (lr - floor) * t / W` for t < W, then `floor + (lr - floor) * (1 + cos(pi * t / T)) / 2`. So the rate
    falls a little at the end of the warm-up.

    Args:
        optimizer: Optimiser or wrapper.
        warmup: Length of the warm-up, in iterations, or in epochs with `convert_to_iter_based=True`.
        end: Length of the schedule, likewise.
        floor: Lowest rate, absolute.
        kwargs: `by_epoch`, `last_step` and `verbose`, see `mmengine.optim.CosineAnnealingLR`.

    Raises:
        ValueError: The warm-up is longer than the schedule.
    """

    def __init__(self, optimizer: Any, warmup: int, end: int, floor: float = 0.0, **kwargs: Any) -> None:
        if not 0 <= warmup <= end:
            raise ValueError(f'warmup={warmup} must lie between 0 and end={end}')
        self.warmup, self.length, self.floor = warmup, end, floor
        super().__init__(optimizer, end=end, **kwargs)

    @classmethod
    def build_iter_from_epoch(
        cls, optimizer: Any, warmup: int, end: int, epoch_length: int, by_epoch: bool = True, **kwargs: Any
    ) -> 'WarmupCosineLR':
        """Build it from lengths in epochs."""
        return cls(optimizer, warmup * epoch_length, end * epoch_length, by_epoch=False, **kwargs)

    def _get_value(self) -> list[float]:
        step = self.last_step
        share = step / self.warmup if step < self.warmup else (1 + math.cos(math.pi * step / self.length)) / 2
        return [self.floor + (base - self.floor) * share for base in self.base_values]


def has_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether the reference decays a parameter.

    It does not decay 1-D ones (norms, biases, LayerScale), the cls token and a position embedding. The mask token and
    the relative position bias tables are decayed, as there.
    """
    return parameter.ndim > 1 and not name.endswith(NO_DECAY_NAMES)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SimMIMOptimWrapperConstructor:
    """Two parameter groups, with and without weight decay (see `has_decay`).

    MMEngine's own makes one group per parameter where a `paramwise_cfg` is given, which keeps the optimiser from
    working on many tensors at once.

    Args:
        optim_wrapper_cfg: Config of the optimiser wrapper, with `optimizer`.
        paramwise_cfg: None; MMEngine's `DefaultOptimWrapperConstructor` is the one for such wishes.

    Raises:
        ValueError: `paramwise_cfg` is given.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        if paramwise_cfg:
            raise ValueError(
                f"paramwise_cfg={paramwise_cfg} needs optim_wrapper.constructor='DefaultOptimWrapperConstructor'"
            )
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build optimiser and wrapper for the parameters that have gradients."""
        cfg = {'type': 'OptimWrapper', **self.optim_wrapper_cfg}
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        decayed = [p for name, p in named if has_decay(name, p)]
        others = [p for name, p in named if not has_decay(name, p)]
        print_log(f'Weight decay on {len(decayed)} tensors, none on {len(others)}', 'current')
        groups: list[dict[str, Any]] = [dict(params=decayed), dict(params=others, weight_decay=0.0)]
        optimizer = OPTIMIZERS.build({**cfg.pop('optimizer'), 'params': [group for group in groups if group['params']]})
        return ROOT_OPTIM_WRAPPERS.build(cfg, default_args=dict(optimizer=optimizer))
