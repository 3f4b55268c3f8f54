"""Count operators, floating-point operations and saved bytes of a training step, independent of the machine."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class OperatorCounter(TorchDispatchMode):
    """Count the dispatched PyTorch operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def count_flops(build: Callable[[], nn.Module], images: Tensor, mask: Tensor) -> int:
    """Floating-point operations of forward and backward pass, counted on the meta device; a multiply-add is two.

    Args:
        build: Function that makes the model, whose `forward(images, mask)` returns the loss.
        images: Images, of which only the shape matters.
        mask: Mask, of which only the shape matters.
    """
    model = build().to('meta')
    with FlopCounterMode(display=False) as counter:
        model(images.to('meta'), mask.to('meta')).backward()
    return counter.get_total_flops()


def saved_bytes(model: nn.Module, images: Tensor, mask: Tensor) -> int:
    """Bytes that the forward pass saves for the backward pass; each storage once, without parameters."""
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers(), images, mask)}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x.detach()  # x itself would hold its own graph, and neither would ever be freed

    with saved_tensors_hooks(note, lambda x: x):
        loss = model(images, mask)
    total = sum(kept.values())
    del loss  # the storages must live until they are counted
    return total
