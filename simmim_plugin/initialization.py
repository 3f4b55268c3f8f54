"""The reference implementation's initialisation of a SimMIMViT."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from simmim_plugin.backbone import SimMIMViT


def init_parameters(vit: 'SimMIMViT', cut: float) -> None:
    """Draw the weights from a normal of std 0.02 cut at +-`cut`; scale each block's output layers down by its depth.

    Bias tables, q and v biases stay 0, norms 1 and 0, as they are made.
    """
    drawn: list[Tensor] = [vit.cls_token, vit.mask_token, *([] if vit.pos_embed is None else [vit.pos_embed])]
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            drawn.append(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for parameter in drawn:
        nn.init.trunc_normal_(parameter, std=0.02, a=-cut, b=cut)
    with torch.no_grad():
        for i in range(vit.num_layers):
            for name in (f'blocks.{i}.attn.proj', f'blocks.{i}.mlp.fc2'):
                vit.get_parameter(f'{name}.weight').div_((2 * (i + 1)) ** 0.5)
