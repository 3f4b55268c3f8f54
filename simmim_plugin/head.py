"""SimMIMHead: one linear layer from patch features to pixels, and the loss."""

from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from simmim_plugin.registry import MODELS, build_part


@MODELS.register_module()
class SimMIMHead(BaseModule):
    """Predict the pixels of each patch from its feature vector (arXiv 2111.09886, section 3.3).

    Args:
        in_channels: Width of the features.
        patch_size: Side of a patch in pixels.
        out_channels: Channels of the image.
        loss: Config of the loss (or a built one).
        init_cfg: MMEngine's.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        out_channels: int = 3,
        loss: dict[str, Any] | nn.Module | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.patch_size = patch_size
        self.out_channels = out_channels
        self.decoder = nn.Linear(in_channels, out_channels * patch_size**2)  # outputs in (c, p, q) order
        self.loss_module = build_part(loss or dict(type='ReconstructionLoss', criterion='l1'))

    def forward(self, features: Tensor) -> Tensor:
        """Decode all tokens, for a picture: (B, in_channels, h, w) -> (B, out_channels, h*p, w*p)."""
        pixels = self.decoder(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, C*p*p, h, w)
        return F.pixel_shuffle(pixels, self.patch_size)

    def loss(self, features: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Decode the masked tokens and compare them with the image.

        Args:
            features: (B, in_channels, h, w).
            target: (B, out_channels, h*p, w*p), normalised images.
            mask: (B, h, w), 1 = masked.

        Returns:
            `{'loss': scalar}`.
        """
        masked = mask.flatten().nonzero().squeeze(1)  # (masked tokens,)
        patches = F.pixel_unshuffle(target, self.patch_size).permute(0, 2, 3, 1)  # (B, h, w, C*p*p)
        prediction = self.decoder(features.permute(0, 2, 3, 1).flatten(0, 2)[masked])  # (masked tokens, C*p*p)
        shape = (-1, self.out_channels, self.patch_size**2)
        return {'loss': self.loss_module(prediction.reshape(shape), patches.flatten(0, 2)[masked].reshape(shape))}
