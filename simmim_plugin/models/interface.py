"""What a backbone must have. This is fixed: `SimMIM` and all tools use nothing else of it.

Needed by `SimMIM`: `Backbone` below. Needed by features, probes and pictures as well: `img_size`, height and width in
pixels. What a backbone may have besides, for more:

- `num_layers` and `forward_intermediates(x, indices, return_prefix_tokens=True)`, which returns (anything, [(map,
  prefix tokens (B, n, C) or None) for each of the layers `indices`]), and `norm`, which the last of them has not passed
  yet: features of other layers than the last. `layer_shapes`, (width, stride) of each, if they differ. `out_indices`,
  numbers from 0 of the layers that `forward` returns, rising.
- `has_class_token`, if its first prefix token is one; `SimMIMViT` has it anyway.
- `fc_norm`: between mean of the patches and classifier.
- `get_layer_depth(name, prefix)`: layer decay.
- `forward_intermediates(..., attention_of=(row, column))`: pictures of the attention.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from simmim_plugin.registry import SCOPE, WEIGHT_INITIALIZERS

PRETRAINED = ('Pretrained', 'PretrainedViT')
NEEDED = ('embed_dims', 'patch_size', 'in_channels', 'img_size')


class Backbone(Protocol):
    """Features of normalised images, part of which a mask hides."""

    embed_dims: int  # channels of the last map, C
    patch_size: int  # its stride in pixels
    in_channels: int  # of the images

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W), (B, h, w) with 1 = hidden -> maps, the last (B, C, H/stride, W/stride)."""


def checked(backbone: Any, where: str) -> Any:
    """The backbone, if it has what the tools need; `where` begins the message.

    Raises:
        ValueError: It lacks an attribute.
    """
    if missing := [name for name in NEEDED if not hasattr(backbone, name)]:
        raise ValueError(
            f'{where} is a {type(backbone).__name__} without {", ".join(missing)}; put it into a MaskedBackbone'
        )
    return backbone


def layer_shapes(backbone: Any) -> Sequence[tuple[int, int]]:
    """Width and stride of each layer whose features can be had; of the last alone without `forward_intermediates`."""
    last = (backbone.embed_dims, backbone.patch_size)
    if not hasattr(backbone, 'forward_intermediates'):
        return [last]
    return getattr(backbone, 'layer_shapes', [last] * backbone.num_layers)


def trained_layers(backbone: Any) -> int:
    """Number of layers up to the last whose features the model uses; those behind it are as initialised."""
    count = len(layer_shapes(backbone))
    return backbone.out_indices[-1] + 1 if count > 1 and hasattr(backbone, 'out_indices') else count


def has_class_token(backbone: Any) -> bool:
    """Whether the first token of the features is a class token."""
    return bool(getattr(backbone, 'has_class_token', hasattr(backbone, 'cls_token')))


def shows_attention(backbone: Any) -> bool:
    """Whether the attention of a patch can be had."""
    method = getattr(backbone, 'forward_intermediates', None)
    return method is not None and 'attention_of' in inspect.signature(method).parameters


def features_after(backbone: Any, x: Tensor, layers: Sequence[int], **options: Any) -> list[tuple[Any, ...]]:
    """Features of unmasked images after layers, those of the last normalised like the output.

    Args:
        backbone: See the module.
        x: (B, in_channels, H, W), normalised.
        layers: Numbers from 0, rising.
        options: `attention_of`, if `shows_attention`.

    Returns:
        Per layer the map (B, h, w, C), the class token (B, C) or None, and what the options add.
    """
    if not hasattr(backbone, 'forward_intermediates'):
        return [(backbone(x)[-1].permute(0, 2, 3, 1), None)]
    _, found = backbone.forward_intermediates(x, layers, return_prefix_tokens=True, **options)
    token = has_class_token(backbone)
    entries = [(each.permute(0, 2, 3, 1), prefix[:, 0] if token else None, *more) for each, prefix, *more in found]
    norm = getattr(backbone, 'norm', None)
    if norm is not None and layers[-1] == backbone.num_layers - 1:
        patches, cls, *more = entries[-1]
        entries[-1] = (norm(patches), None if cls is None else norm(cls), *more)
    return entries


def with_our_loader(init_cfg: Any) -> list[dict[str, Any]]:
    """`init_cfg` with `Pretrained` replaced by `PretrainedViT`, at the end, as MMEngine does it.

    MMEngine's own unpickles any object, and only warns when nothing fits.
    """
    given: list[Any] = [init_cfg] if isinstance(init_cfg, Mapping) else list(init_cfg or ())
    ours = [
        {**{k: v for k, v in cfg.items() if k != 'map_location'}, 'type': 'simmim_plugin.PretrainedViT'}
        for cfg in given
        if cfg['type'] == 'Pretrained'
    ]
    return [cfg for cfg in given if cfg['type'] != 'Pretrained'] + ours


def load_frozen(backbone: Any, init_cfg: Any) -> None:
    """Load all weights of a backbone that is not trained, so that none may be as initialised.

    Args:
        backbone: A `SimMIMViT` or `MaskedBackbone`.
        init_cfg: `dict(type='Pretrained', checkpoint=...)`, see `PretrainedViT`.

    Raises:
        ValueError: There is no such config, or the file is of another model or of a part of one.
    """
    if not isinstance(init_cfg, Mapping) or str(init_cfg.get('type')).removeprefix(f'{SCOPE}.') not in PRETRAINED:
        raise ValueError(
            "the teacher has no weights; give teacher=dict(..., init_cfg=dict(type='Pretrained', checkpoint=...))"
        )
    fitted = WEIGHT_INITIALIZERS.build(with_our_loader({**init_cfg, 'type': 'Pretrained'})[-1])(backbone)
    # The mask token has no use without a mask; names of a MaskedBackbone's `model` are checked in loading.
    missing = [name for name in fitted.kept if name != 'mask_token' and not name.startswith('model.')]
    if missing:
        raise ValueError(
            f'{init_cfg["checkpoint"]} is of another model than the teacher: it has no {", ".join(missing)}'
        )
