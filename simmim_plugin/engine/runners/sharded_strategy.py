"""Training with parameters, gradients and optimiser state sharded over the processes (FSDP), for ViT-H and larger."""

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
from simmim_plugin.utils.distributed import _whole
from simmim_plugin.utils.files import whole_file


@STRATEGIES.register_module()
class ShardedStrategy(DDPStrategy):
    """PyTorch's `fully_shard` (FSDP2) for MMEngine's FlexibleRunner: every process keeps a part of everything.

    A block's parameters are gathered when it computes. Losses and weights are those of data-parallel training but for
    rounding, and so are the checkpoints: one whole file with the same names, from which one process or a data-parallel
    training can go on, and the other way round. With one process nothing is sharded.

    MMEngine's own `FSDPStrategy` wraps the first version of FSDP, whose functions it calls as they were before PyTorch
    2.1.

    Args:
        layers: Names of the classes of modules that are gathered on their own; the rest is gathered as a whole.
        kwargs: See `mmengine._strategy.DDPStrategy`.
    """

    def __init__(self, layers: Sequence[str] = ('Block',), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = names('ShardedStrategy.layers', layers, "e.g. ['Block']")

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger, with a short terminal; see `console.shorten`."""
        return shorten(super().build_logger(*args, **kwargs))

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """Shard the model in place.

        Raises:
            ValueError: It has no module of the classes `layers`.
        """
        device = get_device()
        model = self.convert_model(model.to(device))
        if self.world_size == 1:
            return model
        for tensor in (*model.parameters(), *model.buffers()):  # the processes' own differ in their seeds
            dist.broadcast(tensor.detach(), 0)
        parts = [module for module in model.modules() if type(module).__name__ in self.layers]
        if not parts:
            raise ValueError(f'layers={self.layers} of ShardedStrategy: {type(model).__name__} has no such modules')
        mesh = init_device_mesh(torch.device(device).type, (self.world_size,))
        for module in (*parts, model):
            fully_shard(module, mesh=mesh)
        return model

    def model_state_dict(self) -> dict[str, Any]:
        """All weights, in the first process; empty in the others. All must call it."""
        return get_model_state_dict(self.model, options=_whole())

    def optim_state_dict(self) -> dict[str, Any]:
        """The optimiser's state as `Optimizer.state_dict` gives it, in the first process. All must call it."""
        state: Any = get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, options=_whole())
        if not state:
            return {}
        names = [name for group in state['param_groups'] for name in group['params']]
        return _renamed(state, {name: i for i, name in enumerate(names)})

    def load_model_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = False, **kwargs: Any) -> None:
        """Give every process its part of whole weights."""
        set_model_state_dict(
            self.model, dict(state_dict), options=StateDictOptions(full_state_dict=True, strict=strict)
        )

    def load_optim_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Give every process its part of a whole state, such as `Optimizer.state_dict` gives."""
        name_of = {id(parameter): name for name, parameter in self.model.named_parameters()}
        optimizer = self.optim_wrapper.optimizer
        names = [name_of[id(p)] for group in optimizer.param_groups for p in group['params']]
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, optimizer, _renamed(state_dict, dict(enumerate(names))), options=options)

    def load_checkpoint(self, filename: str, **kwargs: Any) -> dict[str, Any]:
        """As MMEngine's; the whole file stays in the processor's memory."""
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
        """Gather everything in the first process, which writes one file, whole or not at all. All must call it."""
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


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimiser's state with other names for its parameters."""
    groups = [{**group, 'params': [names[key] for key in group['params']]} for group in state['param_groups']]
    return dict(state={names[key]: value for key, value in state['state'].items()}, param_groups=groups)
