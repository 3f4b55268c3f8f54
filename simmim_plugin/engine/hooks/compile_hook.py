"""Compile the model's forward and backward pass."""

import torch
from mmengine.hooks import Hook

from simmim_plugin.models.simmim import SimMIM
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import choice, flag, text
from simmim_plugin.utils.distributed import bare_model, is_sharded
from simmim_plugin.utils.runner_protocol import TrainingRunner


@HOOKS.register_module()
class CompileHook(Hook):
    """`torch.compile` the model's forward pass, and with it the backward pass, as one graph, in place.

    The state dict keeps its names: checkpoints of compiled and other runs are the same. (MMEngine's `compile = True`
    compiles the whole step instead, which breaks into six graphs.) The first iteration takes a minute or more; on CPUs
    a C++ compiler is required. The validation of `SimMIM` is not compiled. A batch of another shape, such as after a
    change by `ImageSizeHook`, is compiled once more.

    Args:
        mode: See `torch.compile`: None, 'reduce-overhead', 'max-autotune' ...
        backend: See `torch.compile`; PyTorch's own compiler is 'inductor'.
        fullgraph: Require a single graph. None: True for `SimMIM`, False for other models, which may not trace as one.

    Raises:
        ValueError: An argument is of another kind, this PyTorch has no such mode or backend, or the model is sharded.
    """

    def __init__(self, mode: str | None = None, backend: str = 'inductor', fullgraph: bool | None = None) -> None:
        self.mode = None if mode is None else text('CompileHook.mode', mode, "e.g. 'reduce-overhead'")
        self.backend = text('CompileHook.backend', backend, "PyTorch's own is 'inductor'")
        self.fullgraph = None if fullgraph is None else flag('CompileHook.fullgraph', fullgraph)

    def before_train(self, runner: TrainingRunner) -> None:
        """Mark the model for compilation, which happens in the first iteration."""
        model = bare_model(runner)
        if is_sharded(model):
            raise ValueError('--compile (CompileHook) cannot be combined with ShardedStrategy; leave one of them out')
        if self.backend not in torch.compiler.list_backends(()):
            choice('CompileHook.backend', self.backend, torch.compiler.list_backends())  # those not for debugging
        if self.backend == 'inductor':
            choice('CompileHook.mode', self.mode, (None, 'default', *torch._inductor.list_mode_options()))
        fullgraph = isinstance(model, SimMIM) if self.fullgraph is None else self.fullgraph
        # A graph for each image size (ImageSizeHook): one for any size is slower, and takes longer to compile.
        dynamic = False if isinstance(model, SimMIM) else None
        model.compile(mode=self.mode, backend=self.backend, fullgraph=fullgraph, dynamic=dynamic)

    def before_val(self, runner: TrainingRunner) -> None:
        """The losses of single images would be a graph as long as the batch."""
        if isinstance(bare_model(runner), SimMIM):
            torch.compiler.set_stance('force_eager')

    def after_val(self, runner: TrainingRunner) -> None:
        """Go on with the compiled training."""
        torch.compiler.set_stance('default')
