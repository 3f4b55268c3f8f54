"""Compile the forward pass of the model that is trained."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from simmim_plugin.registry import HOOKS


@HOOKS.register_module()
class CompileHook(Hook):
    """`torch.compile` the model's forward pass, and with it the backward pass, as one graph, in place.

    The state dict keeps its names: checkpoints of compiled and other runs are the same. (MMEngine's `compile = True`
    compiles the whole step instead, which breaks into six graphs.) The first iteration takes a minute or more; it needs
    a C++ compiler on processors.

    Args:
        mode: PyTorch's: None, 'reduce-overhead', 'max-autotune' ...
        backend: PyTorch's; its own compiler is 'inductor'.
        fullgraph: One graph or an error; True for SimMIM. Set it to False for models that PyTorch cannot follow.
    """

    def __init__(self, mode: str | None = None, backend: str = 'inductor', fullgraph: bool = True) -> None:
        self.settings = dict(mode=mode, backend=backend, fullgraph=fullgraph)

    def before_train(self, runner: Any) -> None:
        """Compile; PyTorch does the work in the first iteration."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.compile(**self.settings)
