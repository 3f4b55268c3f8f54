"""SimMIMHead: from patch features to pixels, and the loss."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from simmim_plugin.losses import normalize_patches, reconstruction_loss
from simmim_plugin.registry import MODELS, build_part
from simmim_plugin.visualization import pixel_mask


@MODELS.register_module()
class SimMIMHead(BaseModule):
    """Predict the pixels of each patch from its feature vector (arXiv 2111.09886, section 3.3).

    Args:
        in_channels: Width of the features.
        patch_size: Side of a patch in pixels.
        out_channels: Channels of the image.
        num_layers: 1 is the published linear layer, 2 an MLP with one hidden layer of `in_channels` and GELU.
        normalize_target: Predict patches normalised by their own mean and standard deviation (`normalize_patches`).
        loss: Config of the loss (or a built one).
        init_cfg: MMEngine's.

    Raises:
        ValueError: `num_layers` is less than 1.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        out_channels: int = 3,
        num_layers: int = 1,
        normalize_target: bool = False,
        loss: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError(f'num_layers={num_layers!r} of SimMIMHead must be 1 (the published linear layer) or more')
        self.patch_size = patch_size
        self.out_channels = out_channels
        self.normalize_target = normalize_target
        hidden = [part for _ in range(num_layers - 1) for part in (nn.Linear(in_channels, in_channels), nn.GELU())]
        last = nn.Linear(in_channels, out_channels * patch_size**2)  # outputs in (c, p, q) order
        self.decoder = nn.Sequential(*hidden, last) if hidden else last
        self.loss_module = build_part(loss or dict(type='ReconstructionLoss', criterion='l1'))

    def forward(self, features: Tensor, target: Tensor | None = None) -> Tensor:
        """Decode all tokens, for a picture.

        Args:
            features: (B, in_channels, h, w).
            target: (B, out_channels, h*p, w*p), the images. With `normalize_target`, the prediction is put into their
                units by each true patch's mean and std, which the model does not know.

        Returns:
            (B, out_channels, h*p, w*p).
        """
        rows = self.decoder(features.permute(0, 2, 3, 1))  # (B, h, w, C*p*p)
        if self.normalize_target and target is not None:
            _, mean, std = normalize_patches(self._rows(target))
            rows = rows * std + mean
        return F.pixel_shuffle(rows.permute(0, 3, 1, 2), self.patch_size)

    def normalized(self, images: Tensor, reference: Tensor) -> Tensor:
        """With `normalize_target`, images in units of each patch of the reference; else unchanged. (B, C, H, W) all."""
        if not self.normalize_target:
            return images
        _, mean, std = normalize_patches(self._rows(reference))
        return F.pixel_shuffle(((self._rows(images) - mean) / std).permute(0, 3, 1, 2), self.patch_size)

    def loss(self, features: Tensor, target: Tensor, mask: Tensor, **parts: Tensor | None) -> dict[str, Tensor]:
        """Decode the tokens that count and compare them with the image.

        Args:
            features: (B, in_channels, h, w).
            target: (B, out_channels, h*p, w*p), normalised images.
            mask: (B, h, w), 1 = masked.
            parts: Masks whose pixels' error shall be told apart, of the same shape: `local`, `global_`.

        Returns:
            `{'loss': scalar}`, and for each of the parts `error_<name>`: the criterion's mean over its pixels, for the
            log (MMEngine adds up what has 'loss' in its name).
        """
        truth = self._rows(target)
        if self.normalize_target:
            truth = normalize_patches(truth)[0]
        rows = features.permute(0, 2, 3, 1)
        if getattr(self.loss_module, 'whole_image', False):
            prediction = self.decoder(rows)
            images = [F.pixel_shuffle(x.permute(0, 3, 1, 2), self.patch_size) for x in (prediction, truth)]
            losses = {'loss': self.loss_module(images[0], images[1], pixel_mask(mask, self.patch_size))}
            counted: Tensor | slice = slice(None)
        else:
            counted = mask.flatten().nonzero().squeeze(1)  # (masked tokens,)
            truth = truth.flatten(0, 2)[counted]
            prediction = self.decoder(rows.flatten(0, 2)[counted])
            losses = {'loss': self.loss_module(self._pixels(prediction), self._pixels(truth))}
        for name, part in parts.items():
            if part is not None:
                losses[f'error_{name.rstrip("_")}'] = self._error(prediction, truth, part.flatten()[counted])
        return losses

    @torch.no_grad()
    def _error(self, prediction: Tensor, truth: Tensor, tokens: Tensor) -> Tensor:
        """The criterion's mean over the pixels of some tokens, (n,) 1 = counted."""
        weight = tokens[:, None, None].expand(-1, 1, self.patch_size**2)
        criterion = getattr(self.loss_module, 'criterion', 'l1')
        return reconstruction_loss(self._pixels(prediction), self._pixels(truth), weight, criterion)

    def _rows(self, images: Tensor) -> Tensor:
        """(B, C, h*p, w*p) -> (B, h, w, C*p*p)."""
        return F.pixel_unshuffle(images, self.patch_size).permute(0, 2, 3, 1)

    def _pixels(self, rows: Tensor) -> Tensor:
        """(..., C*p*p) -> (tokens, C, p*p)."""
        return rows.reshape(-1, self.out_channels, self.patch_size**2)
