"""Patches of an image as tokens."""

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor


class LinearPatchEmbed(PatchEmbed):
    """timm's `PatchEmbed`; under autocast one matrix product over the cut patches instead of a convolution.

    Values and parameters (`proj.weight` (D, C, p, p), `proj.bias`) are the same but for rounding. In bfloat16 the
    product takes a third to a half of the time (docs/performance.md); in float32 little is gained, and the convolution
    rounds as the reference does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h*w, D); with `dynamic_img_pad` sides are padded with 0 to multiples of the patch."""
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        height, width = self.patch_size
        if self.dynamic_img_pad:
            x = F.pad(x, (0, -x.shape[3] % width, 0, -x.shape[2] % height))
        B, C, H, W = x.shape
        cut = x.reshape(B, C, H // height, height, W // width, width).permute(0, 2, 4, 1, 3, 5)
        patches = cut.reshape(B, -1, C * height * width)  # (B, h*w, C*p*p), in the order of the kernel
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
