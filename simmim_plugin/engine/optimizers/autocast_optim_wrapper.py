"""Mixed precision: bfloat16 autocast without a gradient scaler."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from simmim_plugin.engine.runners.mmengine_internals import skips_steps_itself
from simmim_plugin.engine.step_records import SKIPPED, StepRecords
from simmim_plugin.registry import OPTIM_WRAPPERS
from simmim_plugin.utils.arguments import choice, flag, names
from simmim_plugin.utils.hardware import has_bfloat16


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
        ValueError: An argument is of another kind, or the model has no such part.
    """

    def __init__(
        self,
        on_cpu: bool | str = False,
        parts: Sequence[str] | None = None,
        skip_nonfinite: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        choice('AutocastOptimWrapper.on_cpu', on_cpu, (True, False, 'auto'))
        self.on_cpu = has_bfloat16() if on_cpu == 'auto' else on_cpu
        self.parts = None if parts is None else names('AutocastOptimWrapper.parts', parts, "e.g. ['backbone', 'neck']")
        self.skip_nonfinite = flag('AutocastOptimWrapper.skip_nonfinite', skip_nonfinite)
        self.records: StepRecords | None = None  # SimMIMRuntimeInfoHook's

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
            norm = _whole(nn.utils.get_total_norm([p.grad for p in self._parameters()]))
        skipped = 1 - norm.isfinite().float()
        if self.records is not None:
            self.records.values[SKIPPED] = skipped
        if skips_steps_itself(self.optimizer):
            self.optimizer.found_inf = skipped
            try:
                self.optimizer.step(**kwargs)
            finally:
                del self.optimizer.found_inf
        elif not skipped.item():
            self.optimizer.step(**kwargs)

    def _parameters(self) -> list[Any]:
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group['params'] if p.requires_grad and p.grad is not None]

    def _clip_grad(self) -> Tensor | None:
        """Clip as MMEngine does; returns the norm before it, if that is what is clipped.

        Without `records` the norm is read for the message hub, which waits for the device.
        """
        parameters = self._parameters()
        norm = _whole(self.clip_func(parameters, **self.clip_grad_kwargs)) if parameters else None
        if norm is not None and self.records is not None:
            self.records.values[self.grad_name] = norm
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
