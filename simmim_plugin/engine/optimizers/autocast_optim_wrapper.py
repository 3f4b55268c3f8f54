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

from simmim_plugin.engine.moving_statistics import moving_statistics
from simmim_plugin.engine.runners.mmengine_internals import skips_steps_itself
from simmim_plugin.engine.step_records import SKIPPED, StepRecords
from simmim_plugin.registry import OPTIM_WRAPPERS
from simmim_plugin.utils.arguments import choice, flag, names
from simmim_plugin.utils.hardware import has_bfloat16


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Autocast in the forward pass, and skip steps whose loss or gradient is not finite.

    There is no gradient scaler (bfloat16 has the range of float32); parameters stay float32. All ranks skip the same
    steps, and running statistics (batch norm) go back to those before them. With a fused optimiser this needs no device
    synchronisation. `FaultHook` counts the skipped steps.

    MMEngine's `AmpOptimWrapper` refuses to run without an accelerator and scales gradients by default.

    Args:
        on_cpu: Autocast on CPUs: True, or 'auto' where it is faster, see `has_bfloat16`.
        parts: Submodules to autocast, with float32 outputs; None: the whole model. For a detector use
            `('backbone', 'neck')`: MMCV's RoIAlign and NMS do not support bfloat16.
        skip_nonfinite: Skip steps whose loss or gradient is not finite.
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
        self._moving: list[Tensor] | None = None  # running statistics of the model, found in its first step
        self._before: list[Tensor] = []  # as they were before the step

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """As in MMEngine, without its warning about lost gradients, which supposes steps counted over the run."""
        super().initialize_count_status(model, 0, max_counts)
        self._inner_count = init_counts

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Backward pass; a loss that is not finite makes all gradients NaN, on every rank."""
        if self.skip_nonfinite:  # an infinite difference has a finite gradient; a factor of 1 changes nothing
            loss = loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)
        super().backward(loss, **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Clip the gradients, and step unless one is not finite."""
        norm = self._clip_grad() if self.clip_grad_kwargs else None
        if not self.skip_nonfinite:
            self.optimizer.step(**kwargs)
            return
        if norm is None:
            norm = _full(nn.utils.get_total_norm([p.grad for p in self._parameters()]))
        skipped = 1 - norm.isfinite().float()
        if self.records is not None:
            self.records.values[SKIPPED] = skipped
        for now, before in zip(self._moving or (), self._before):
            now.copy_(torch.where(skipped.bool(), before, now))
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
        """Clip as MMEngine does, and return the norm before clipping.

        Without `records` the norm is read for the message hub, which synchronises the device.
        """
        parameters = self._parameters()
        norm = _full(self.clip_func(parameters, **self.clip_grad_kwargs)) if parameters else None
        if norm is not None and self.records is not None:
            self.records.values[self.grad_name] = norm
        elif norm is not None:
            self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))
        return norm

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Gradient accumulation as in MMEngine, and autocast."""
        if self.skip_nonfinite and self._inner_count % self._accumulative_counts == 0:
            if self._moving is None:
                self._moving = [*moving_statistics(model).values()]
            self._before = [buffer.clone() for buffer in self._moving]
        device = next(model.parameters()).device.type
        enabled = device != 'cpu' or self.on_cpu
        with super().optim_context(model), autocast(model, self.parts) if enabled else nullcontext():
            yield


def _full(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # sharded gradients have a sharded norm


@contextmanager
def autocast(model: nn.Module, parts: Sequence[str] | None = None) -> Iterator[None]:
    """Context in which a model computes under bfloat16 autocast.

    Args:
        model: The model, or a wrapper around it.
        parts: Children of the model to autocast, with bfloat16 outputs converted to float32; None: the whole model.

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
                raise ValueError(
                    f'parts={tuple(parts or ())}: the model has no {name!r}; choose from {", ".join(children)}'
                )
            stack.enter_context(_autocast_forward(children[name], device))
        yield


@contextmanager
def _autocast_forward(part: nn.Module, device: str) -> Iterator[None]:
    original, patched = part.forward, 'forward' in vars(part)  # MMEngine patches it for activation checkpointing

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, torch.bfloat16):
            outputs = original(*args, **kwargs)
        return tree_map_only(torch.Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, outputs)

    part.forward = forward
    try:
        yield
    finally:
        if patched:
            part.forward = original
        else:
            del part.forward
