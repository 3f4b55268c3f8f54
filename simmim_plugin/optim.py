"""Optimisation: bfloat16 autocast without a scaler, and the reference's linear warm-up."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import LinearLR, OptimWrapper
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
