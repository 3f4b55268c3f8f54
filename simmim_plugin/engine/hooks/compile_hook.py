"""Compile the forward pass of the model that is trained."""

from mmengine.hooks import Hook

from simmim_plugin.models.simmim import SimMIM
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import flag
from simmim_plugin.utils.distributed import bare_model, is_sharded
from simmim_plugin.utils.runner_protocol import TrainingRunner


@HOOKS.register_module()
class CompileHook(Hook):
    """`torch.compile` the model's forward pass, and with it the backward pass, as one graph, in place.

    The state dict keeps its names: checkpoints of compiled and other runs are the same. (MMEngine's `compile = True`
    compiles the whole step instead, which breaks into six graphs.) The first iteration takes a minute or more; it needs
    a C++ compiler on processors.

    Args:
        mode: PyTorch's: None, 'reduce-overhead', 'max-autotune' ...
        backend: PyTorch's; its own compiler is 'inductor'.
        fullgraph: One graph or an error. None: True for `SimMIM`, False for models that PyTorch may not follow.

    Raises:
        ValueError: The model is sharded.
    """

    def __init__(self, mode: str | None = None, backend: str = 'inductor', fullgraph: bool | None = None) -> None:
        self.mode, self.backend = mode, backend
        self.fullgraph = None if fullgraph is None else flag('CompileHook.fullgraph', fullgraph)

    def before_train(self, runner: TrainingRunner) -> None:
        """Compile; PyTorch does the work in the first iteration."""
        model = bare_model(runner)
        if is_sharded(model):
            raise ValueError('--compile (CompileHook) does not go with ShardedStrategy; leave one of them out')
        fullgraph = isinstance(model, SimMIM) if self.fullgraph is None else self.fullgraph
        model.compile(mode=self.mode, backend=self.backend, fullgraph=fullgraph)
