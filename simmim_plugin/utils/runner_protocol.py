"""Protocol of the runners that hooks accept."""

import logging
from typing import Any, Protocol, runtime_checkable

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader


@runtime_checkable
class TrainingRunner(Protocol):
    """The public attributes of MMEngine's `Runner` and `FlexibleRunner` that the hooks use."""

    cfg: Config
    work_dir: str
    seed: int
    world_size: int
    epoch: int
    iter: int  # iterations done; in `after_train_iter` without the current one
    max_epochs: int
    max_iters: int
    model: nn.Module
    optim_wrapper: Any
    param_schedulers: Any
    train_dataloader: DataLoader[Any]
    val_loop: Any
    train_loop: Any
    hooks: list[Hook]
    message_hub: MessageHub
    logger: logging.Logger
    visualizer: Visualizer

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call a method of every hook that has it."""

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint."""
