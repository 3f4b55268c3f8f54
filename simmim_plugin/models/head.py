"""SimMIMHead: decode features to pixels or another target, and compute the loss."""

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from simmim_plugin.models.losses import reconstruction_loss
from simmim_plugin.models.masks import cell_mask, pixel_mask
from simmim_plugin.models.targets import build_target
from simmim_plugin.registry import MODELS, build_part
from simmim_plugin.utils.arguments import flags, parts, whole


@MODELS.register_module()
class SimMIMHead(BaseModule):
    """Predict the pixels, or another target, of each patch from its feature vector (arXiv 2111.09886, section 3.3).

    A patch here is what one feature vector stands for: a square as wide as the stride of the features. The masks may be
    finer or coarser.

    Args:
        in_channels: Width of the features.
        patch_size: Stride of the features in pixels: 16 for ViT-B/16, 32 for Swin, whose masks are over patches of 4.
        out_channels: Channels of the image.
        num_layers: 1 is the published linear layer, 2 an MLP with one hidden layer of `in_channels` and GELU.
        normalize_target: True is the older name of `target='normalized_pixels'`.
        loss: Config of the loss (or a built one); None: the mean absolute error over what is masked, for any target.
        target: What is predicted: 'pixels', 'normalized_pixels', 'low_pass', 'hog' or 'features', or a dict with one of
            these as `type` and its settings; see `models/targets.py`. None: 'pixels'.
        init_cfg: See `mmengine.model.BaseModule`.

    Raises:
        ValueError: An argument is out of range, or `normalize_target` contradicts `target`.
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
        target: str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(parts('init_cfg', init_cfg))
        whole('SimMIMHead.in_channels', in_channels, 1, hint='the embed_dims of the backbone')
        whole('SimMIMHead.patch_size', patch_size, 1, hint='the patch_size of the backbone')
        whole('SimMIMHead.out_channels', out_channels, 1, hint='3 for RGB')
        whole('SimMIMHead.num_layers', num_layers, 1, 64, '1 is the published linear layer')
        flags(normalize_target=normalize_target)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.out_channels = out_channels
        if normalize_target and target not in (None, 'normalized_pixels', dict(type='normalized_pixels')):
            raise ValueError(f'SimMIMHead.target={target!r} contradicts normalize_target=True; leave the latter out')
        plain = 'normalized_pixels' if normalize_target else 'pixels'
        self.target = build_target(plain if target is None else target, patch_size, out_channels)
        hidden = [part for _ in range(num_layers - 1) for part in (nn.Linear(in_channels, in_channels), nn.GELU())]
        last = nn.Linear(
            in_channels, self.target.channels * self.target.cells**2
        )  # outputs in (channel, row, column) order
        self.decoder = nn.Sequential(*hidden, last) if hidden else last
        self.loss_module = build_part(dict(type='ReconstructionLoss', criterion='l1') if loss is None else loss, 'loss')

    def forward(self, features: Tensor, images: Tensor | None = None) -> Tensor:
        """Decode every patch.

        Args:
            features: (B, in_channels, h, w).
            images: (B, out_channels, h*p, w*p), the true ones. With 'normalized_pixels', the prediction is scaled back
                to their units by the mean and std of each true patch, which the model does not know.

        Returns:
            A map of the target, (B, D, h*s, w*s); of pixels, (B, out_channels, h*p, w*p).

        Raises:
            ValueError: The features are not a map, or do not have `in_channels`.
        """
        if features.ndim != 4:
            raise ValueError(
                f'features of shape {tuple(features.shape)} are not a map of patches, (B, in_channels, h, w); set '
                "out_type='featmap' of the backbone"
            )
        if features.shape[1] != self.in_channels:
            raise ValueError(
                f'features of {features.shape[1]} channels do not fit in_channels={self.in_channels} of SimMIMHead; '
                f'set head=dict(in_channels={features.shape[1]})'
            )
        rows = self.decoder(features.permute(0, 2, 3, 1))  # (B, h, w, D*s*s)
        maps = F.pixel_shuffle(rows.permute(0, 3, 1, 2), self.target.cells)
        return maps if images is None else self.target.restored(maps, images)

    def loss(self, features: Tensor, target: Tensor, mask: Tensor, **parts: Tensor | None) -> dict[str, Tensor]:
        """Decode the features and compare them with the image.

        Args:
            features: (B, in_channels, h, w).
            target: (B, out_channels, h*p, w*p), normalised images.
            mask: (B, m, n), 1 = masked, any division of the images into squares (`pixel_mask`).
            parts: Masks to report separate errors for, same shape: `local`, `global_`.

        Returns:
            `{'loss': scalar}`, and for each of `parts` an `error_<name>`: the mean of the criterion over its cells,
            for the log only (MMEngine sums the entries with 'loss' in their names).

        Raises:
            ValueError: Features, images and masks do not fit each other.
        """
        size, grid = tuple(target.shape[2:]), features.shape[2:]
        if features.ndim == 4 and size != tuple(side * self.patch_size for side in grid):
            strides = ' x '.join(f'{pixels / side:g}' for pixels, side in zip(size, grid))
            raise ValueError(
                f'features of {grid[0]} x {grid[1]} for images of {size[0]} x {size[1]} px have a stride of {strides} '
                f'px, but SimMIMHead has patch_size={self.patch_size}; set head=dict(patch_size=...) to the stride, '
                'and the size of the images to a multiple of it'
            )
        prediction, truth = self(features), self.target.normalized(self.target(target), target)
        cells = cell_mask(pixel_mask(mask, size), truth.shape[2:])
        losses = {'loss': self.loss_module(prediction, truth, cells)}
        criterion = getattr(self.loss_module, 'criterion', 'l1')
        for name, part in parts.items():
            if part is not None:
                counted = cell_mask(pixel_mask(part, size), truth.shape[2:])
                error = reconstruction_loss(prediction.detach(), truth, counted, criterion)
                losses[f'error_{name.rstrip("_")}'] = error
        return losses

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'SimMIMHead':
        """Move the target with the head, such as to another device."""
        self.target.move(fn)
        return super()._apply(fn, recurse)
