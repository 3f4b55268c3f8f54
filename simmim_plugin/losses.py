"""Reconstruction losses: pure functions, and a module for configs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_plugin.registry import MODELS

# Keeps an empty mask from dividing by zero; the value is the reference implementation's.
EPS = 1e-5

CRITERIA: dict[str, Callable[..., Tensor]] = {
    'l1': F.l1_loss,
    'l2': F.mse_loss,
    'smooth_l1': F.smooth_l1_loss,
}


def reconstruction_loss(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, criterion: str = 'l1'
) -> Tensor:
    """Mean error per pixel and channel over the masked pixels of the whole batch.

    The published SimMIM loss (arXiv 2111.09886, eq. 1) as the reference implementation computes it:
    `sum(error * mask) / (sum(mask) + 1e-5) / C`. The mean is over the batch, not per image.

    Args:
        prediction: (B, C, ...), any number of pixel dimensions.
        target: Same shape, same (normalised) units.
        mask: (B, 1, ...) over the pixels, 1 = masked = counted. None counts every pixel.
        criterion: 'l1', 'l2' (squared error) or 'smooth_l1' (beta 1).

    Returns:
        A scalar in float32 or wider. An empty mask gives 0.

    Raises:
        ValueError: Shapes differ or the criterion is unknown.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f'prediction and target must have the same shape, got {tuple(prediction.shape)} and {tuple(target.shape)}'
        )
    _check_criterion(criterion)
    if not torch.is_floating_point(target) or torch.finfo(target.dtype).bits < 32:
        target = target.float()
    channels = target.shape[1]
    error = CRITERIA[criterion](prediction.to(target.dtype), target, reduction='none')
    if mask is None:
        return error.sum() / (error.numel() / max(channels, 1) + EPS) / channels
    if mask.shape != (target.shape[0], 1, *target.shape[2:]):
        raise ValueError(
            f'mask must be (B, 1, ...) over the pixels of the target {tuple(target.shape)}, got {tuple(mask.shape)}'
        )
    mask = mask.to(error.dtype)
    return (error * mask).sum() / (mask.sum() + EPS) / channels


def _check_criterion(criterion: str) -> None:
    if criterion not in CRITERIA:
        raise ValueError(f'criterion={criterion!r} is unknown; choose one of {", ".join(map(repr, CRITERIA))}')


@MODELS.register_module()
class ReconstructionLoss(nn.Module):
    """`reconstruction_loss` as a module.

    Args:
        criterion: 'l1' (the published one), 'l2' or 'smooth_l1'.
        loss_weight: Factor on the result.
    """

    def __init__(self, criterion: str = 'l1', loss_weight: float = 1.0) -> None:
        super().__init__()
        _check_criterion(criterion)
        self.criterion = criterion
        self.loss_weight = loss_weight

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `reconstruction_loss`: (B, C, ...), (B, C, ...), (B, 1, ...) or None -> scalar."""
        return self.loss_weight * reconstruction_loss(prediction, target, mask, self.criterion)
