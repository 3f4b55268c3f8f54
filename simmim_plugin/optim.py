"""Optimisation: bfloat16 autocast without a scaler, and the reference's decay groups."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from simmim_plugin.machine import has_bfloat16
from simmim_plugin.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS

# Parameters without weight decay whatever their shape, by the end of their name.
NO_DECAY_NAMES = ('cls_token', 'pos_embed')


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Autocast in the forward pass, and no step where loss or gradient is not finite.

    There is no gradient scaler (bfloat16 has float32's range); parameters stay float32. A step is skipped in all
    processes alike, and nothing waits for the device for it where the optimiser is a fused one; `FaultHook` counts.

    MMEngine's `AmpOptimWrapper` refuses to run without an accelerator and scales gradients by default.

    Args:
        on_cpu: Autocast on processors, too: True, or 'auto' where it gains, see `has_bfloat16`.
        parts: Submodules to autocast in, None for the whole model; what they return is float32 again. A detector
            takes `('backbone', 'neck')`: MMCV's RoIAlign and NMS do not know bfloat16.
        skip_nonfinite: Skip such steps.
        kwargs: See `mmengine.optim.OptimWrapper`.

    Raises:
        ValueError: `on_cpu` is unknown, or the model has no such part.
    """

    def __init__(
        self,
        on_cpu: bool | str = False,
        parts: Sequence[str] | None = None,
        skip_nonfinite: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if on_cpu not in (True, False, 'auto'):
            raise ValueError(f"on_cpu={on_cpu!r} is unknown; choose True, False or 'auto'")
        self.on_cpu, self.parts = has_bfloat16() if on_cpu == 'auto' else on_cpu, parts
        self.skip_nonfinite = skip_nonfinite
        self.skipped: Tensor | None = None  # whether the last step was: 1, or 0
        self.keep_grad_norm = False  # whether the norm stays a tensor here, for SimMIMRuntimeInfoHook
        self.grad_norm: Tensor | None = None

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Backward pass; from a loss that is not finite all gradients become NaN, in every process."""
        if self.skip_nonfinite:  # an infinite difference has a finite gradient; a factor of 1 changes nothing
            loss = loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)
        super().backward(loss, **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Clip, and step unless a gradient is not finite."""
        norm = self._clip_grad() if self.clip_grad_kwargs else None
        if not self.skip_nonfinite:
            self.optimizer.step(**kwargs)
            return
        if norm is None:
            norm = _whole(nn.utils.get_total_norm([p.grad for p in self._parameters() if p.grad is not None]))
        self.skipped = 1 - norm.isfinite().float()
        if getattr(self.optimizer, '_step_supports_amp_scaling', False):  # fused: the device itself looks
            self.optimizer.found_inf = self.skipped
            try:
                self.optimizer.step(**kwargs)
            finally:
                del self.optimizer.found_inf
        elif not self.skipped.item():
            self.optimizer.step(**kwargs)

    def _parameters(self) -> list[nn.Parameter]:
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group['params'] if p.requires_grad and p.grad is not None]

    def _clip_grad(self) -> Tensor | None:
        """Clip as MMEngine does; returns the norm before it, if that is what is clipped.

        Reading the norm for the log would wait for the device; `keep_grad_norm` leaves that to the hook.
        """
        parameters = self._parameters()
        norm = _whole(self.clip_func(parameters, **self.clip_grad_kwargs)) if parameters else None
        if self.keep_grad_norm:
            self.grad_norm = norm
        elif norm is not None:
            self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))
        return norm

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Gradient accumulation as in MMEngine, and autocast."""
        device = next(model.parameters()).device.type
        enabled = device != 'cpu' or self.on_cpu
        with super().optim_context(model), autocast(model, self.parts) if enabled else nullcontext():
            yield


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # of sharded gradients


@contextmanager
def autocast(model: nn.Module, parts: Sequence[str] | None = None) -> Iterator[None]:
    """Within it, a model computes under bfloat16 autocast.

    Args:
        model: The model, or a wrapper around it.
        parts: Children of the model to autocast in, None for all of it; their outputs in bfloat16 become float32.

    Raises:
        ValueError: The model has no such part.
    """
    inner: Any = model.module if is_model_wrapper(model) else model
    device = next(inner.parameters()).device.type
    children = dict(inner.named_children())
    with ExitStack() as stack:
        if parts is None:
            stack.enter_context(torch.autocast(device, torch.bfloat16))
        for name in dict.fromkeys(parts or ()):
            if name not in children:
                raise ValueError(f'parts={tuple(parts or ())}: no {name!r} in the model, but {", ".join(children)}')
            stack.enter_context(_autocast_forward(children[name], device))
        yield


@contextmanager
def _autocast_forward(part: nn.Module, device: str) -> Iterator[None]:
    whole, patched = part.forward, 'forward' in vars(part)  # MMEngine patches it for activation checkpointing

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, torch.bfloat16):
            outputs = whole(*args, **kwargs)
        return tree_map_only(torch.Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, outputs)

    part.forward = forward
    try:
        yield
    finally:
        if patched:
            part.forward = whole
        else:
            del part.forward


def has_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether the reference decays a parameter.

    It does not decay 1-D ones (norms, biases, LayerScale), the cls token and a position embedding. The mask token and
    the relative position bias tables are decayed, as there.
    """
    return parameter.ndim > 1 and not name.endswith(NO_DECAY_NAMES)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SimMIMOptimWrapperConstructor:
    """Parameter groups with and without weight decay (see `has_decay`), and by layer with layer decay.

    Works on any model, of MMPretrain, MMDetection, MMSegmentation or none: what has a layer is asked of the submodule
    with `get_layer_depth(name)`, the backbone; everything outside it has the full rate. MMEngine's own
    constructors make one group per parameter, which keeps the optimiser from working on many tensors at once.

    Args:
        optim_wrapper_cfg: Config of the optimiser wrapper, with `optimizer`.
        paramwise_cfg: None, or `dict(layer_decay_rate=0.65)`: the rate of layer i of L is lr * 0.65 ** (L - 1 - i),
            with layer 0 what comes before the blocks, i + 1 block i, and L - 1 the rest (arXiv 2111.09886 fine-tunes
            ViT-B so). A group says its `layer_id` and `lr_scale`.

    Raises:
        ValueError: `paramwise_cfg` has other keys, or the rate is not in (0, 1].
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        wishes = dict(paramwise_cfg or {})
        self.layer_decay_rate = wishes.pop('layer_decay_rate', 1.0)
        if wishes:
            raise ValueError(
                f'paramwise_cfg={wishes}: this constructor knows layer_decay_rate only; for other wishes set '
                "optim_wrapper.constructor='DefaultOptimWrapperConstructor'"
            )
        if not 0 < self.layer_decay_rate <= 1:
            raise ValueError(f'layer_decay_rate={self.layer_decay_rate} is outside (0, 1]; the published value is 0.65')
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build optimiser and wrapper for the parameters that have gradients.

        Raises:
            ValueError: Layer decay is asked for, and no part of the model knows its layers.
        """
        cfg = {'type': 'OptimWrapper', **self.optim_wrapper_cfg}
        optimizer = dict(cfg.pop('optimizer'))
        groups: dict[tuple[int | None, bool], list[nn.Parameter]] = {}
        layers = self._layers(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = (layers.of(name) if layers else None, has_decay(name, parameter))
                groups.setdefault(key, []).append(parameter)
        settings: list[dict[str, Any]] = []
        for (layer, decayed), parameters in sorted(groups.items(), key=lambda item: (item[0][0] or 0, not item[0][1])):
            group: dict[str, Any] = dict(params=parameters)
            if layer is not None and layers:
                scale = self.layer_decay_rate ** (layers.count - 1 - layer)
                group.update(lr=optimizer['lr'] * scale, lr_scale=scale, layer_id=layer)
            settings.append(group if decayed else {**group, 'weight_decay': 0.0})
        counts = [sum(len(p) for (_, decayed), p in groups.items() if decayed is wanted) for wanted in (True, False)]
        told = f'; layer decay {self.layer_decay_rate} over {layers.count} layers' if layers else ''
        print_log(f'Weight decay on {counts[0]} tensors, none on {counts[1]}{told}', 'current')
        built = OPTIMIZERS.build({**optimizer, 'params': settings})
        return ROOT_OPTIM_WRAPPERS.build(cfg, default_args=dict(optimizer=built))

    def _layers(self, model: nn.Module) -> '_Layers | None':
        if self.layer_decay_rate == 1:
            return None
        for name, module in model.named_modules():
            # MMPretrain's classifiers have a method of that name, too, which asks the backbone.
            if hasattr(module, 'get_layer_depth') and not hasattr(module, 'backbone'):
                return _Layers(module, f'{name}.' if name else '')
        raise ValueError(
            f'layer_decay_rate={self.layer_decay_rate}: no part of {type(model).__name__} has get_layer_depth; use a '
            'backbone that has it, such as SimMIMViT, or leave layer_decay_rate out'
        )


class _Layers:
    """Layers of all parameters of a model, by those of its backbone."""

    def __init__(self, backbone: Any, prefix: str) -> None:
        self.backbone, self.prefix = backbone, prefix
        self.count: int = backbone.get_layer_depth('')[1]

    def of(self, name: str) -> int:
        if not name.startswith(self.prefix):
            return self.count - 1
        return self.backbone.get_layer_depth(name, self.prefix)[0]
