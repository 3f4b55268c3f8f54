"""Fully sharded data-parallel training (FSDP), for ViT-H and larger."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mmengine
import torch
import torch.distributed as dist
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from simmim_plugin.registry import STRATEGIES
from simmim_plugin.utils.arguments import names
from simmim_plugin.utils.console import shorten
from simmim_plugin.utils.files import whole_file


@STRATEGIES.register_module()
class ShardedStrategy(DDPStrategy):
    """PyTorch's `fully_shard` (FSDP2) for MMEngine's FlexibleRunner.

    Each rank holds one shard of parameters, gradients and optimiser state; a block's parameters are gathered when it
    computes. Losses and weights equal those of data-parallel training up to rounding. A checkpoint is one file with the
    full tensors under the same names: sharded, data-parallel and single-process runs can resume from each other's. With
    a single rank nothing is sharded.

    MMEngine's own `FSDPStrategy` wraps FSDP1 and calls its functions as they were before PyTorch 2.1.

    Args:
        layers: Class names of the modules that are gathered one by one; the rest is gathered together.
        kwargs: See `mmengine._strategy.DDPStrategy`.

    Raises:
        ValueError: `layers` is not a list of names.
    """

    def __init__(self, layers: Sequence[str] = ('Block',), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = names('ShardedStrategy.layers', layers, "e.g. ['Block']")

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger with short terminal output; see `console.shorten`."""
        return shorten(super().build_logger(*args, **kwargs))

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """Shard the model in place.

        Raises:
            ValueError: It has no module of these classes.
        """
        device = get_device()
        model = self.convert_model(model.to(device))
        if self.world_size == 1:
            return model
        for tensor in (*model.parameters(), *model.buffers()):  # ranks initialise with different seeds
            dist.broadcast(tensor.detach(), 0)
        parts = [module for module in model.modules() if type(module).__name__ in self.layers]
        if not parts:
            raise ValueError(f'layers={self.layers} of ShardedStrategy: {type(model).__name__} has no such modules')
        mesh = init_device_mesh(torch.device(device).type, (self.world_size,))
        for module in (*parts, model):
            fully_shard(module, mesh=mesh)
        return model

    def model_state_dict(self) -> dict[str, Any]:
        """All weights on rank 0, an empty dict on the others. All ranks must call it."""
        return get_model_state_dict(self.model, options=_full_state())

    def optim_state_dict(self) -> dict[str, Any]:
        """The optimiser state in the format of `Optimizer.state_dict`, on rank 0. All ranks must call it."""
        state: Any = get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, options=_full_state())
        if not state:
            return {}
        names = [name for group in state['param_groups'] for name in group['params']]
        return _renamed(state, {name: i for i, name in enumerate(names)})

    def load_model_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = False, **kwargs: Any) -> None:
        """Load full weights, of which each rank keeps its shard."""
        set_model_state_dict(
            self.model, dict(state_dict), options=StateDictOptions(full_state_dict=True, strict=strict)
        )

    def load_optim_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a full optimiser state (format of `Optimizer.state_dict`), of which each rank keeps its shard."""
        name_of = {id(parameter): name for name, parameter in self.model.named_parameters()}
        optimizer = self.optim_wrapper.optimizer
        names = [name_of[id(p)] for group in optimizer.param_groups for p in group['params']]
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, optimizer, _renamed(state_dict, dict(enumerate(names))), options=options)

    def load_checkpoint(self, filename: str, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint as MMEngine does, always into CPU memory."""
        checkpoint: dict[str, Any] = super().load_checkpoint(filename, **{**kwargs, 'map_location': 'cpu'})
        return checkpoint

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Gather everything on rank 0, which writes one file atomically. All ranks must call it."""
        checkpoint: dict[str, Any] = dict(state_dict=self.model_state_dict())
        if save_optimizer:
            checkpoint['optimizer'] = self.optim_state_dict()
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            checkpoint['param_schedulers'] = self.scheduler_state_dict()
        if not is_main_process():
            return
        checkpoint |= extra_ckpt or {}
        meta = checkpoint.setdefault('meta', {})
        meta |= dict(seed=self.seed, time=time.strftime('%Y%m%d_%H%M%S'), mmengine=mmengine.__version__)
        if callback is not None:
            callback(checkpoint)
        with whole_file(os.path.abspath(filename)) as part:
            torch.save(checkpoint, part)


def _full_state() -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimiser state with other names for its parameters."""
    groups = [{**group, 'params': [names[key] for key in group['params']]} for group in state['param_groups']]
    return dict(state={names[key]: value for key, value in state['state'].items()}, param_groups=groups)
