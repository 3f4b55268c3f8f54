"""SimMIM on a ViT written straight from the paper, with no optimisations: the baseline of the benchmark."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from simmim_plugin.models.layers.relative_position import relative_position_index, table_rows


class PlainBlock(nn.Module):
    """Pre-norm block with attention written out."""

    def __init__(self, width: int, heads: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gamma_1 = nn.Parameter(torch.full((width,), 0.1))
        self.gamma_2 = nn.Parameter(torch.full((width,), 0.1))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, N, D), (heads, N, N) -> (B, N, D)."""
        x = x + self.drop_path(self.gamma_1 * self.attention(self.norm1(x), bias))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))

    def attention(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, N, D), (heads, N, N) -> (B, N, D)."""
        B, N, D = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias)))
        q, k, v = qkv.reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * (D // self.heads) ** -0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, D))


class PlainSimMIM(nn.Module):
    """SimMIM that runs and decodes all tokens, and multiplies the error of the full image by the mask.

    Args:
        arch: embed_dims, num_layers, num_heads and feedforward_channels.
        img_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        drop_path_rate: Drop path rate of the last block; it rises linearly from 0.
    """

    def __init__(self, arch: Mapping[str, int], img_size: int = 224, patch_size: int = 16, drop_path_rate: float = 0.1):
        super().__init__()
        width, layers, heads = arch['embed_dims'], arch['num_layers'], arch['num_heads']
        self.patch_size = patch_size
        self.grid = (img_size // patch_size,) * 2
        self.patch_embed = nn.Conv2d(3, width, patch_size, patch_size)
        self.cls_token, self.mask_token = (nn.Parameter(0.02 * torch.randn(1, 1, width)) for _ in range(2))
        self.table = nn.Parameter(torch.zeros(table_rows(self.grid), heads))
        rates = torch.linspace(0, drop_path_rate, layers).tolist()
        self.blocks = nn.ModuleList(PlainBlock(width, heads, arch['feedforward_channels'], rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder = nn.Sequential(nn.Conv2d(width, 3 * patch_size**2, 1), nn.PixelShuffle(patch_size))
        self.index: Tensor
        self.register_buffer('index', relative_position_index(self.grid), persistent=False)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) and masks (B, h, w), 1 = masked -> loss, scalar."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        weight = mask.flatten(1).unsqueeze(-1).type_as(x)
        x = x * (1 - weight) + self.mask_token.expand_as(x) * weight
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        bias = self.table[self.index].permute(2, 0, 1).contiguous()
        for block in self.blocks:
            x = block(x, bias)
        features = self.norm(x)[:, 1:].transpose(1, 2).reshape(len(x), -1, *self.grid)
        pixels = mask.repeat_interleave(self.patch_size, 1).repeat_interleave(self.patch_size, 2).unsqueeze(1)
        error = F.l1_loss(self.decoder(features), images, reduction='none')
        return (error * pixels).sum() / (pixels.sum() + 1e-5) / 3
