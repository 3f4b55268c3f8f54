"""Reconstruction losses, as functions and as a module for configs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_plugin.models.masks import cell_mask
from simmim_plugin.registry import MODELS
from simmim_plugin.utils.arguments import choice, number

# Avoids a division by zero where the mask is empty; the reference implementation's value.
EPS = 1e-5
SCOPES = ('masked', 'all')


def _cosine_loss(prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
    """1 - cosine of the angle between the vectors of channels: (B, C, ...) -> (B, 1, ...)."""
    return 1 - F.cosine_similarity(prediction, target, dim=1).unsqueeze(1)


CRITERIA: dict[str, Callable[..., Tensor]] = {
    'l1': F.l1_loss,
    'l2': F.mse_loss,
    'smooth_l1': F.smooth_l1_loss,
    'cosine': _cosine_loss,
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
        mask: (B, 1, ...) over the pixels, 1 = masked = counted; the share of a cell that is masked in part. None counts
            every pixel.
        criterion: 'l1', 'l2' (squared error), 'smooth_l1' (beta 1), or 'cosine': 1 - cosine similarity over the
            channels, a value per pixel.

    Returns:
        A scalar in float32 or wider. An empty mask gives 0.

    Raises:
        ValueError: Shapes differ or the criterion is unknown.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f'prediction and target must have the same shape, got {tuple(prediction.shape)} and {tuple(target.shape)}'
        )
    choice('criterion', criterion, CRITERIA)
    target = wide(target)
    error = CRITERIA[criterion](prediction.to(target.dtype), target, reduction='none')
    channels = error.shape[1]
    if mask is None:
        return error.sum() / (error.numel() / channels + EPS) / channels
    if mask.shape != (target.shape[0], 1, *target.shape[2:]):
        raise ValueError(
            f'mask must be (B, 1, ...) over the pixels of the target {tuple(target.shape)}, got {tuple(mask.shape)}'
        )
    return (error * mask).sum() / (mask.sum(dtype=error.dtype) + EPS) / channels


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if torch.is_floating_point(x) and torch.finfo(x.dtype).bits >= 32 else x.float()


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each patch to zero mean and unit variance, as the target (MAE, arXiv 2111.06377).

    Args:
        patches: (..., P), P = the pixels times the channels of a patch.
        eps: Added to the variance.

    Returns:
        The normalised patches (..., P), and their mean and std, (..., 1) each.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    std = (patches.var(dim=-1, keepdim=True) + eps).sqrt()  # unbiased variance, as in MAE
    return (patches - mean) / std, mean, std


def focal_frequency_loss(error: Tensor, alpha: float = 1.0, weight: Tensor | None = None) -> Tensor:
    """Focal frequency loss (arXiv 2012.12821): squared error of the spectrum, weighted towards hard frequencies.

    Args:
        error: (B, C, H, W), prediction minus target (the Fourier transform is linear).
        alpha: Exponent of the weight, `abs(spectrum of the error) ** alpha` over its largest value in each channel; no
            gradient flows through it.
        weight: Use this, (B, C, H, W), instead.

    Returns:
        A scalar: the mean over all frequencies (orthonormal transform), channels and images.
    """
    spectrum = torch.fft.fft2(error, norm='ortho')
    distance = spectrum.real.square() + spectrum.imag.square()
    if weight is None:
        weight = distance.detach().sqrt() ** alpha
        weight = weight / weight.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight * distance).mean()


@MODELS.register_module()
class ReconstructionLoss(nn.Module):
    """`reconstruction_loss` as a module, optionally over the whole image, optionally with a frequency term.

    Args:
        criterion: 'l1' (the published one), 'l2' (squared error), 'smooth_l1' or 'cosine' (for features).
        scope: 'masked', the published one, counts masked pixels; 'all' every pixel. The squared error of all pixels is
            1 / (H W C) * sum of (x - p)^2, the formula of simultaneous masking (docs/masking.md).
        frequency_weight: Factor of `focal_frequency_loss` over the whole image, with the error of pixels that do not
            count set to 0. 0 leaves it out. The idea and the weight 0.1 are from A2MIM (arXiv 2205.13943), whose code
            averages the spectra over the batch and halves the weight of visible pixels.
        loss_weight: Factor on the result.

    Raises:
        ValueError: An argument is unknown or out of range.
    """

    def __init__(
        self, criterion: str = 'l1', scope: str = 'masked', frequency_weight: float = 0.0, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        choice('criterion', criterion, CRITERIA)
        choice('scope', scope, SCOPES)
        number('frequency_weight', frequency_weight, 0, hint='A2MIM uses 0.1')
        number('loss_weight', loss_weight, hint='1 is the default')
        self.criterion = criterion
        self.scope = scope
        self.frequency_weight = frequency_weight
        self.loss_weight = loss_weight

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of a batch.

        Args:
            prediction: (B, C, H, W), a map of any target.
            target: Same shape.
            mask: (B, 1, H, W) over the cells of the map, 1 = masked. None: all are masked.

        Returns:
            A scalar.
        """
        counted = None if self.scope == 'all' else mask
        loss = reconstruction_loss(prediction, target, counted, self.criterion)
        if self.frequency_weight > 0:
            error = prediction.to(wide(target).dtype) - wide(target)
            loss = loss + self.frequency_weight * focal_frequency_loss(error if counted is None else error * counted)
        return self.loss_weight * loss


def visible_mean(maps: Tensor, mask: Tensor) -> Tensor:
    """Baseline prediction: the mean of an image over its visible pixels, per channel; or of another map over its cells.

    Args:
        maps: (B, C, H, W).
        mask: (B, 1, H, W), 1 = masked, shares in between. An image without a visible pixel is predicted as 0.

    Returns:
        (B, C, H, W).
    """
    visible = 1 - mask.to(maps.dtype)
    mean = (maps * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp_min(EPS)
    return mean.expand_as(maps)


def masked_loss(model: Any, prediction: Tensor, images: Tensor, mask: Tensor, truth: Tensor | None = None) -> float:
    """Mean of the head's criterion over what is masked, comparable between losses of different scope or terms.

    Args:
        model: A `SimMIM`. A loss module other than `ReconstructionLoss` is called as it is.
        prediction: What `SimMIM.reconstruct` returns; an image is normalised by the true patches first, if the head's
            target is.
        images: (B, C, H, W), the true ones, normalised.
        mask: (B, 1, H, W) over the pixels, 1 = masked.
        truth: The head's target of the images, where it is at hand.
    """
    module, target = model.head.loss_module, model.head.target
    truth = target(images) if truth is None else truth
    mask = cell_mask(mask, truth.shape[2:])
    prediction, truth = (target.normalized(each, images) for each in (prediction, truth))
    if isinstance(module, ReconstructionLoss):
        return float(reconstruction_loss(prediction, truth, mask, module.criterion))
    return float(module(prediction, truth, mask))
