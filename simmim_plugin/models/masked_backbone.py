"""MaskedBackbone: SimMIM's mask for backbones of timm, Transformers and OpenMMLab."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from mmengine.model import BaseModule
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from simmim_plugin.models.interface import with_our_loader
from simmim_plugin.models.layers.architecture import rising_blocks
from simmim_plugin.models.libraries import Layer, Layers, build_inner, inside_of, refusals
from simmim_plugin.models.masks import pixel_mask
from simmim_plugin.registry import MODELS
from simmim_plugin.utils.arguments import choice, parts, sides, whole

CLASSIFIER = 'head.fc.weight'  # any name that no backbone has
PLACES = ('image', 'tokens')
LARGEST_SIDE = 1024  # px, of the image that strides are read off; forward takes any


@MODELS.register_module()
class MaskedBackbone(BaseModule):
    """Any backbone, with what SimMIM adds to it: a learned token in the place of what a mask hides.

    Widths and strides are read off the model. Parameters that its maps do not depend on, such as a pooler, get no
    gradient, so that distributed training does not wait for it.

    Args:
        model: The backbone, without weights of a classifier:
            `dict(type='timm', name='convnext_tiny', ...)`: `timm.create_model(name, ...)`;
            `dict(type='transformers', model_type='dinov2', hidden_size=384, ...)`: the model of that config
            (`HF_TYPES`);
            `dict(type='mmpretrain.ConvNeXt', arch='tiny', ...)`: any backbone of OpenMMLab that gives maps.
            `pretrained` downloads weights: True for timm, the name of a repository for Transformers.
        mask_at: 'image': a learned pixel, one value per channel, in the place of hidden pixels. 'tokens', for
            transformers: a learned token in the place of hidden outputs of the patch embedding.
        img_size: Side, or (height, width), in pixels. None: what the model is for.
        in_channels: Channels of the images.
        out_indices: Layer or layers whose map is returned, rising; negative ones count from the end. Layers are the
            blocks of a ViT, the stages of other models, the outputs of a backbone of OpenMMLab.
        init_cfg: `dict(type='Pretrained', checkpoint=...)` with a checkpoint of this package, or one with the names of
            `model` (see `PretrainedViT`).

    Attributes:
        embed_dims: Channels of the last map.
        patch_size: Its stride in pixels.
        layer_shapes: Channels and stride of each layer.
        unused: Names of the parameters that the maps do not depend on.

    Raises:
        ValueError: An argument is out of range, or the model gives no maps; the message names it.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        mask_at: str = 'image',
        img_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(parts('init_cfg', init_cfg))
        self.in_channels = whole('MaskedBackbone.in_channels', in_channels, 1, 1 << 12, '3 for RGB')
        self.mask_at = choice('mask_at', mask_at, PLACES)
        inner = build_inner(model, in_channels)
        self.model, self._read = inner.model, inner.read
        self.img_size = sides('img_size', inner.img_size if img_size is None else img_size)
        whole('img_size', max(self.img_size), 1, LARGEST_SIDE)
        self._hidden: Tensor | None = None  # mask during a forward pass
        width = in_channels
        if mask_at == 'tokens':
            if inner.patch_embed is None:
                raise ValueError(f"mask_at='tokens': no patch embedding found in {_name(model)}; use mask_at='image'")
            width = _width(inner.patch_embed)
            inner.patch_embed.register_forward_hook(self._hide_tokens)
        self.mask_token = nn.Parameter(torch.zeros((1, 1, width) if mask_at == 'tokens' else (1, width, 1, 1)))
        if mask_at == 'tokens':
            nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.04, b=0.04)
        with refusals(model, f'it gives no maps of images of {self.img_size[0]} x {self.img_size[1]} px'):
            found = self._try()
        self.layer_shapes = [self._shape(each) for each, _ in found]
        self.has_class_token = found[-1][1] is not None
        self.num_layers = len(found)
        self.out_indices = rising_blocks('out_indices', out_indices, self.num_layers)
        self.embed_dims, self.patch_size = self.layer_shapes[self.out_indices[-1]]
        self._freeze_unused([found[i][0] for i in self.out_indices])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Feature maps of normalised images.

        Args:
            x: (B, in_channels, H, W).
            mask: (B, h, w), 1 = hidden, in units of any size that divides the image (at tokens: whole tokens).

        Returns:
            A map (B, C, H / stride, W / stride) per layer of `out_indices`.

        Raises:
            ValueError: Channels of `x` or the shape of `mask` do not fit.
        """
        return tuple(each for each, _ in self._layers(x, mask, self.out_indices))

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int] | None = None, return_prefix_tokens: bool = False
    ) -> tuple[Tensor, list[Any]]:
        """Maps after layers of unmasked images, as timm's method; the last layer's is the model's final one.

        Returns:
            The last map, and one entry per layer: (B, C, h, w), or a tuple of it and the class token, (B, 1, C) or
            None.
        """
        found = self._layers(x, None, indices)
        if not return_prefix_tokens:
            return found[-1][0], [each for each, _ in found]
        return found[-1][0], [(each, None if token is None else token[:, None]) for each, token in found]

    def _layers(self, x: Tensor, mask: Tensor | None, layers: Layers) -> list[Layer]:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'MaskedBackbone has in_channels={self.in_channels}, but got an input of shape {tuple(x.shape)}; set '
                'in_channels of the backbone, or the channels of LoadImage, so that they agree'
            )
        if mask is not None and (mask.ndim != 3 or len(mask) != len(x)):
            raise ValueError(f'mask of shape {tuple(mask.shape)} does not fit: expected ({len(x)}, h, w)')
        if self.mask_at == 'image':
            pixels = None if mask is None else pixel_mask(mask, x.shape[2:])
            return self._read(self.model, self._hide(x, pixels, self.mask_token), layers)
        self._hidden = mask
        try:
            return self._read(self.model, x, layers)
        finally:
            self._hidden = None

    def _hide_tokens(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the patch embedding: tokens (B, h*w, D), or a map (B, h, w, D) or (B, D, h, w)."""
        tokens = output[0] if isinstance(output, tuple) else output
        size = args[0].shape[2:]
        last = tokens.ndim == 3 or self._channels_are_last(module, tokens)
        grid = tokens.shape[1:3] if last else tokens.shape[2:]
        if tokens.ndim == 3:
            side = round((size[0] * size[1] / tokens.shape[1]) ** 0.5)  # of a token in pixels
            grid = (size[0] // side, size[1] // side)
        mask = self._hidden
        if mask is not None:
            unit = grid[0] // mask.shape[1]
            if unit < 1 or (unit * mask.shape[1], unit * mask.shape[2]) != tuple(grid):
                raise ValueError(
                    f'mask of shape {tuple(mask.shape)} does not fit {grid[0]} x {grid[1]} tokens; set '
                    f'model_patch_size={size[0] // grid[0]} in SimMIMMaskGenerator, or a multiple'
                )
            mask = pixel_mask(mask, grid)  # (B, 1, h, w)
            mask = mask.flatten(2).transpose(1, 2) if tokens.ndim == 3 else mask.permute(0, 2, 3, 1) if last else mask
        hidden = self._hide(tokens, mask, self.mask_token if last else self.mask_token.view(1, -1, 1, 1))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _channels_are_last(self, module: nn.Module, tokens: Tensor) -> bool:
        """Whether a map is (B, h, w, D), or (B, D, h, w)."""
        if (layout := getattr(module, 'output_fmt', None)) is not None:  # of timm
            return bool(layout == 'NHWC')
        width = self.mask_token.numel()
        if isinstance(module, nn.Conv2d) or tokens.shape[3] != width:
            return False
        if tokens.shape[1] == width and self._hidden is not None:
            raise ValueError(
                f"mask_at='tokens': the patch embedding gives {tuple(tokens.shape)}, of which dimension 1 or 3 may be "
                f"the {width} channels; use another image size, or mask_at='image'"
            )
        return True

    def _hide(self, x: Tensor, mask: Tensor | None, token: Tensor) -> Tensor:
        """Put the token where a mask is 1; their shapes fit that of `x`."""
        if mask is None:
            # Adds 0, so that the token gets a gradient: DistributedDataParallel expects one of every parameter.
            return x + 0 * token.to(x.dtype) if self.training and token.requires_grad else x
        weight = mask.to(x.dtype)
        return x * (1 - weight) + token.to(x.dtype) * weight

    def _shape(self, features: Tensor) -> tuple[int, int]:
        """Channels and stride of a map of an image of `img_size`."""
        if features.ndim != 4:
            raise ValueError(
                f'model gives features of shape {tuple(features.shape)}, not a map (B, C, h, w); set its out_type to '
                "'featmap' or take another backbone"
            )
        strides = [side / cells for side, cells in zip(self.img_size, features.shape[2:])]
        if strides[0] != strides[1] or strides[0] % 1:
            raise ValueError(
                f'img_size={self.img_size} gives a map of {" x ".join(map(str, features.shape[2:]))}, whose stride is '
                'no whole number of pixels; give a multiple of the stride'
            )
        return features.shape[1], int(strides[0])

    def _try(self) -> list[Layer]:
        """Outputs of all layers for a black image of `img_size`."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            image = torch.zeros(1, self.in_channels, *self.img_size, device=self.mask_token.device)
            with torch.enable_grad():
                found = self._layers(image, None, None)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return found

    def _freeze_unused(self, maps: Sequence[Tensor]) -> None:
        """No gradient for the parameters that the maps do not depend on."""
        trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        with torch.enable_grad():
            found = torch.autograd.grad([each.sum() for each in maps], list(trained.values()), allow_unused=True)
        self.unused = {f'model.{name}' for name, gradient in zip(trained, found) if gradient is None}
        for name in self.unused:
            self.get_parameter(name).requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter, for layer-wise learning rates; called by MMPretrain's constructor.

        Args:
            param_name: Name of the parameter, with the prefix.
            prefix: Name of the backbone and a dot.

        Returns:
            Layer and number of layers: 0 for the embedding or stem, the last for everything else, the classifier
            included; in between as timm groups the model's parameters, or by block.

        Raises:
            ValueError: The model does not say what its layers are.
        """
        depths, count = self._depths()
        name = param_name.removeprefix(prefix)
        inside = param_name.startswith(prefix)
        return (depths.get(name, 0) if inside and name in (*depths, 'mask_token') else count - 1), count

    def _depths(self) -> tuple[dict[str, int], int]:
        """Layer of each parameter of the model, by its name here, and the number of layers."""
        names = [name for name, _ in self.model.named_parameters()]
        inner, path = inside_of(self.model)
        found: dict[str, int] = {}
        if hasattr(inner, 'group_matcher'):
            named = [(name.removeprefix(path), None) for name in (*names, f'{path}{CLASSIFIER}')]
            grouped = group_with_matcher(named, inner.group_matcher(), reverse=True)
            found, count = {path + name: layer for name, layer in grouped.items()}, 1 + max(grouped.values())
        elif hasattr(inner, 'config') and len(set(self.layer_shapes)) == 1:  # a ViT of Transformers
            found, count = {name: _block_of(name, self.num_layers) for name in names}, self.num_layers + 2
        elif hasattr(inner, 'get_layer_depth'):
            with suppress(NotImplementedError):  # MMPretrain's way of saying that it has none
                found, count = {name: inner.get_layer_depth(name)[0] for name in names}, inner.get_layer_depth('')[1]
        if not found:
            raise ValueError(
                f'layer decay: {type(inner).__name__} does not say what its layers are (group_matcher or '
                'get_layer_depth); leave layer_decay_rate out'
            )
        return {f'model.{name}': layer for name, layer in found.items()}, count

    def init_weights(self) -> None:
        """Initialise as `init_cfg` says, with `Pretrained` replaced by our `PretrainedViT`, which runs last."""
        model: Any = self.model
        init_cfg: Any = getattr(self, 'init_cfg', None)
        if hasattr(model, 'init_weights') and not getattr(model, 'is_init', False):
            model.init_weights()  # MMEngine would do it after what we load
        self.init_cfg = with_our_loader(init_cfg)
        super().init_weights()
        self.init_cfg = init_cfg


def _block_of(name: str, count: int) -> int:
    """Layer of a parameter of Transformers: 0 the embeddings, i + 1 block i, then the rest."""
    block = re.search(r'\blayer\.(\d+)\.', name)
    return int(block[1]) + 1 if block else 0 if name.startswith('embeddings.') else count + 1


def _width(embed: nn.Module) -> int:
    """Width of the outputs of a patch embedding."""
    last: Any = [part for part in embed.modules() if isinstance(part, nn.Conv2d | nn.Linear)][-1]
    return int(last.out_channels if isinstance(last, nn.Conv2d) else last.out_features)


def _name(model: Mapping[str, Any]) -> Any:
    return model.get('name') or model.get('model_type') or model.get('model_name') or ''
