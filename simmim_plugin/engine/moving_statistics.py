"""What a forward pass in training changes by itself: the running statistics of normalisation layers."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def moving_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Name -> running mean, variance or counter of each batch or instance norm of a model that has them."""
    return {
        f'{name}.{key}': buffer
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        for key, buffer in module.named_buffers(recurse=False)
    }
