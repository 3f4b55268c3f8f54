"""Process groups of distributed training, and access to wrapped and sharded models."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import MODELS
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from simmim_plugin.utils.runner_protocol import TrainingRunner

WAIT = 1800  # default timeout in seconds for other ranks and for data loader workers


def is_first_process(launcher: str) -> bool:
    """Whether this is rank 0, by the launcher's environment: before there is a process group."""
    variable = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK').get(launcher)
    return variable is None or os.environ.get(variable, '0') == '0'


def start_process_group(cfg: Config) -> None:
    """Start gloo without a GPU, and NCCL after torchrun has restarted the ranks; MMEngine starts the other groups.

    torchrun keeps its address store across restarts. With the addresses of the previous processes in it, the new ones
    would not find each other, so that every start gets its own prefix in the store.

    Args:
        cfg: Config with `launcher`, and `env_cfg.dist_cfg.timeout` in seconds; `model_wrapper_cfg` is set for gloo.

    Raises:
        ValueError: Slurm is used without GPUs.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    starts = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    if torch.cuda.is_available():
        if cfg.launcher != 'pytorch' or starts == '0':
            return
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    elif cfg.launcher != 'pytorch':
        raise ValueError(f'--launcher {cfg.launcher} needs GPUs; without them use tools/dist_train.sh (gloo)')
    else:
        wrapper = dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
        cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}
    timeout = timedelta(seconds=(cfg.get('env_cfg') or {}).get('dist_cfg', {}).get('timeout', WAIT))
    store, rank, world_size = next(dist.rendezvous('env://', timeout=timeout))
    store = dist.PrefixStore(f'start_{starts}', store)
    backend = 'nccl' if torch.cuda.is_available() else 'gloo'
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def leave_process_group() -> None:
    """Wait for the other ranks, and destroy the process group, whose threads may abort at the interpreter's exit."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def bare_model(runner: TrainingRunner) -> Any:
    """The model of a runner without the wrappers of data-parallel training and test-time augmentation."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model.module if isinstance(model, BaseTTAModel) else model


def is_sharded(model: nn.Module) -> bool:
    """Whether a rank holds only a shard of the model."""
    return isinstance(model, FSDPModule)


def averaging_hook(runner: TrainingRunner) -> EMAHook | None:
    """The hook that averages the weights, which checkpoints then hold as `state_dict`; None if there is none."""
    return next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)


def averaged(runner: TrainingRunner) -> str:
    """Words for the log on which weights `saved_model` has; '' without an average."""
    return '' if averaging_hook(runner) is None else ', averaged weights as in the checkpoint'


def saved_model(runner: TrainingRunner) -> Any:
    """The model with the weights that a checkpoint holds, for use on a single rank.

    It is the average of `EMAHook`, the bare model, or a full copy of a sharded one. All ranks must call it.
    """
    average = averaging_hook(runner)
    model = bare_model(runner) if average is None else average.ema_model.module
    if not is_sharded(model):
        return model
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    device = next(model.parameters()).device
    copy = MODELS.build(runner.cfg.model).to(device)
    copy.load_state_dict(state)
    return copy.train(model.training)
