"""Models of the step benchmark: ours, the plain version, and those of other packages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_plugin.benchmark.plain import PlainSimMIM
from simmim_plugin.models.layers.architecture import ARCHS
from simmim_plugin.registry import build_part

SWINS = {'small': 'tiny', 'base': 'base', 'large': 'large'}  # ViT -> Swin nearest in size
PATCH, UNIT, RATIO = 16, 32, 0.6  # pixels, pixels, share of units


@dataclass
class Subject:
    """A model whose training step is measured.

    Args:
        name: Name in tables.
        build: Builds the model; its `forward(images, mask)` returns the loss. ImportError if a package is missing.
        compiled: Compile the forward pass.
        fused: Use PyTorch's fused AdamW instead of its default one.
    """

    name: str
    build: Callable[[], nn.Module]
    compiled: bool = False
    fused: bool = False


class OurSimMIM(nn.Module):
    """SimMIM of this package."""

    def __init__(self, arch: Mapping[str, int], img_size: int, **backbone: Any) -> None:
        super().__init__()
        vit = dict(type='SimMIMViT', arch=dict(arch), img_size=img_size, patch_size=PATCH, drop_path_rate=0.1)
        self.model = build_part(dict(type='SimMIM', backbone={**vit, **backbone}))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W), (B, h, w) -> scalar."""
        return self.model(images, mask=mask, mode='loss')['loss']


class TimmBeit(nn.Module):
    """timm's `Beit` with mask token and decoder."""

    def __init__(self, arch: Mapping[str, int], img_size: int) -> None:
        super().__init__()
        from timm.models.beit import Beit

        width = arch['embed_dims']
        self.vit = Beit(
            img_size, PATCH, num_classes=0, embed_dim=width, depth=arch['num_layers'], num_heads=arch['num_heads'],
            mlp_ratio=arch['feedforward_channels'] / width, qkv_bias=True, init_values=0.1, drop_path_rate=0.1,
            use_abs_pos_emb=False, use_shared_rel_pos_bias=True,
        )  # fmt: skip
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = _decoder(width)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W), (B, h, w) -> scalar."""
        x = self.vit.patch_embed(images)
        weight = mask.flatten(1).unsqueeze(-1).type_as(x)
        x = x * (1 - weight) + self.mask_token * weight
        x = torch.cat((self.vit.cls_token.expand(len(x), -1, -1), x), dim=1)
        bias = self.vit.rel_pos_bias()
        for block in self.vit.blocks:
            x = block(x, shared_rel_pos_bias=bias)
        return _masked_l1(self.decoder(_as_map(self.vit.norm(x)[:, 1:], mask)), images, mask)


class HuggingFaceViT(nn.Module):
    """`ViTForMaskedImageModeling` of transformers: absolute positions, no bias in attention."""

    def __init__(self, arch: Mapping[str, int], img_size: int) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForMaskedImageModeling

        self.model = ViTForMaskedImageModeling(
            ViTConfig(
                hidden_size=arch['embed_dims'], num_hidden_layers=arch['num_layers'], image_size=img_size,
                num_attention_heads=arch['num_heads'], intermediate_size=arch['feedforward_channels'],
                patch_size=PATCH, encoder_stride=PATCH,
            )
        )  # fmt: skip

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W), (B, h, w) -> scalar."""
        return self.model(images, bool_masked_pos=mask.flatten(1).bool()).loss


class MMPretrainBEiT(nn.Module):
    """MMPretrain's `BEiTPretrainViT`, attention written out, with a decoder."""

    def __init__(self, arch: Mapping[str, int], img_size: int) -> None:
        super().__init__()
        from mmpretrain.models import BEiTPretrainViT

        self.vit = BEiTPretrainViT(
            arch=dict(arch), img_size=img_size, patch_size=PATCH, out_type='raw', drop_path_rate=0.1,
            layer_scale_init_value=0.1, use_abs_pos_emb=False, use_shared_rel_pos_bias=True,
        )  # fmt: skip
        self.decoder = _decoder(arch['embed_dims'])

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W), (B, h, w) -> scalar."""
        features = self.vit(images, mask)[-1][:, 1:]
        return _masked_l1(self.decoder(_as_map(features, mask)), images, mask)


class MMPretrainSwin(nn.Module):
    """MMPretrain's own SimMIM: Swin at 192 px with windows of 6, as in its configs; masks have one value per 4 px."""

    def __init__(self, size: str) -> None:
        super().__init__()
        from mmpretrain.models import SimMIMHead, SimMIMLinearDecoder, SimMIMSwinTransformer

        stages = dict(block_cfgs=dict(window_size=6))
        self.swin = SimMIMSwinTransformer(arch=size, img_size=192, stage_cfgs=stages, drop_path_rate=0.1)
        self.neck = SimMIMLinearDecoder(in_channels=self.swin.num_features[-1], encoder_stride=32)
        self.head = SimMIMHead(4, dict(type='mmpretrain.PixelReconstructionLoss', criterion='L1', channel=3))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, H, W), (B, h, w) -> scalar; both are cropped to 192 px."""
        images = images[..., :192, :192]
        mask = mask[:, :12, :12].repeat_interleave(4, 1).repeat_interleave(4, 2)
        return self.head.loss(self.neck(self.swin(images, mask)[0]), images, mask)


def subjects(arch: str | Mapping[str, int], img_size: int) -> list[Subject]:
    """All models, in table order: ViTs, and for named sizes the Swin nearest in size."""
    sizes = ARCHS[arch] if isinstance(arch, str) else arch
    swin = SWINS.get(arch) if isinstance(arch, str) else None
    found = [
        Subject('plain eager', lambda: PlainSimMIM(sizes, img_size)),
        Subject('plain, fused AdamW', lambda: PlainSimMIM(sizes, img_size), fused=True),
        Subject('plain compiled, fused AdamW', lambda: PlainSimMIM(sizes, img_size), compiled=True, fused=True),
        Subject('ours eager', lambda: OurSimMIM(sizes, img_size), fused=True),
        Subject('ours compiled', lambda: OurSimMIM(sizes, img_size), compiled=True, fused=True),
        Subject(
            'ours without bias (another recipe)',
            lambda: OurSimMIM(sizes, img_size, use_shared_rel_pos_bias=False, use_abs_pos_embed=True),
            fused=True,
        ),
        Subject('timm Beit', lambda: TimmBeit(sizes, img_size)),
        Subject('Hugging Face ViT', lambda: HuggingFaceViT(sizes, img_size)),
        Subject('MMPretrain BEiT', lambda: MMPretrainBEiT(sizes, img_size)),
    ]
    if swin is not None and img_size >= 192:
        found.append(Subject(f'MMPretrain Swin-{swin}, 192 px', lambda: MMPretrainSwin(swin)))
    return found


def _decoder(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, 3 * PATCH**2, 1), nn.PixelShuffle(PATCH))


def _as_map(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, h*w, D) -> (B, D, h, w)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *mask.shape[1:])


def _masked_l1(prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    pixels = mask.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).unsqueeze(1)
    return (F.l1_loss(prediction, images, reduction='none') * pixels).sum() / (pixels.sum() + 1e-5) / 3
