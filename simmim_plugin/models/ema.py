"""Exponential moving average of a model's weights, with fused operators."""

from typing import Any

import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from simmim_plugin.registry import MODELS


@MODELS.register_module()
class ForeachEMA(ExponentialMovingAverage):
    """MMEngine's `ExponentialMovingAverage` with a few operators per step instead of several per tensor.

    `custom_hooks = [dict(type='EMAHook', ema_type='simmim_plugin.ForeachEMA', momentum=0.0002)]`. Arguments are
    MMEngine's: average = (1 - momentum) * average + momentum * weights.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._steps: int | None = None  # `steps` as an int: reading the buffer would wait for the device
        self.register_load_state_dict_post_hook(lambda *_: setattr(self, '_steps', None))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model's weights; the first call copies them."""
        if self._steps is None:
            self._steps = int(self.steps)
        steps, self._steps = self._steps, self._steps + 1
        if steps == 0:
            super().update_parameters(model)
            return
        if steps % self.interval == 0:
            source = model.state_dict() if self.update_buffers else dict(model.named_parameters())
            pairs = [(x.data, source[name].data) for name, x in self.avg_parameters.items() if x.is_floating_point()]
            averages = [average for average, _ in pairs]
            torch._foreach_lerp_(averages, [x.to(average.device) for average, x in pairs], self.momentum)
        if not self.update_buffers:
            own, others = list(self.module.buffers()), list(model.buffers())
            if own:
                torch._foreach_copy_(own, others)
        self.steps += 1
