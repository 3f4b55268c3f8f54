"""SimMIMViT: the Vision Transformer of SimMIM, for pretraining (with a mask) and transfer (without)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from simmim_plugin.models.fit import fit_state
from simmim_plugin.models.interface import with_our_loader
from simmim_plugin.models.layers.architecture import arch_settings, one_table, rising_blocks, window_sizes
from simmim_plugin.models.layers.relative_position import INTERPOLATIONS, Grid, RelativePositionBias
from simmim_plugin.models.layers.transformer import (
    Biases,
    Block,
    LinearPatchEmbed,
    has_windows,
    init_parameters,
    shared_biases,
)
from simmim_plugin.registry import MODELS
from simmim_plugin.utils.arguments import choice, flags, grid_of, number, parts, sides, whole

OUT_TYPES = ('featmap', 'avg_featmap', 'cls_token', 'raw')


@MODELS.register_module()
class SimMIMViT(BaseModule):
    """Vision Transformer with mask token and relative position bias (arXiv 2111.09886; BEiT's architecture).

    Arguments have the names and meanings of MMPretrain; parameters have the names of the reference implementation and
    of timm's `Beit`, so their state dicts load as they are. With `use_abs_pos_embed` and without bias tables it is the
    ordinary ViT (timm's `VisionTransformer`): the key bias there adds the same to all scores of a query, which softmax
    ignores.

    Args:
        arch: 'small', 'base', 'large', 'huge', or a dict of embed_dims, num_layers, num_heads, feedforward_channels.
        img_size: Side, or (height, width), in pixels, that the bias tables (or position embedding) are for.
            Other inputs whose sides are multiples of `patch_size` work: see `table_interpolation`.
        dynamic_img_pad: Zero-pad inputs at the right and bottom to multiples of `patch_size`; feature maps then include
            the padding. If False, such inputs are an error.
        patch_size: Side of a patch in pixels.
        in_channels: Channels of the input, any number.
        drop_path_rate: Drop path rate of the last block; rates rise linearly from 0. The published value is 0.1.
        layer_scale_init_value: Initial LayerScale; 0 leaves LayerScale out.
        use_shared_rel_pos_bias: One relative position bias table for all blocks (pretraining).
        use_rel_pos_bias: One table per block (fine-tuning); excludes the shared one.
        use_abs_pos_embed: A learned absolute position embedding.
        out_type: 'featmap' (B, embed_dims, h, w); 'avg_featmap' (B, embed_dims), the mean of the patch tokens after
            a norm `fc_norm`, which replaces the final `norm`; 'cls_token' (B, embed_dims); 'raw'
            (B, 1 + num_registers + h*w, embed_dims).
        out_indices: Block or blocks whose output is returned, rising; negative ones count from the end. The final norm
            is applied to the last block only.
        frozen_stages: If above 0, freeze the patch embedding, the tokens and this many blocks; if these are all blocks,
            the final norm and a shared bias table as well.
        window_size: Side, in patches, of attention windows for large images; 14 is the grid of 224 px, whose tables fit
            as they are. 0: global attention. See `in_windows`.
        global_blocks: Blocks with global attention despite `window_size`, such as (2, 5, 8, 11) of 12 (ViTDet).
        with_cp: Save memory by recomputing each block in the backward pass.
        table_interpolation: How bias tables fit other image sizes, in `forward` and on loading: 'geometric', as in the
            reference implementation and MMPretrain, or 'plain', bicubic as if all offsets counted alike (see
            `resize_table`).
        init_cut: Weights are drawn from a normal of std 0.02 truncated at +-`init_cut`: 0.02 in pretraining, 2.0 when
            training a classifier from scratch (the reference's values).
        num_registers: Learned tokens between the class token and the patches (registers, arXiv 2309.16588). They have
            no position embedding, and in bias tables the rows of the class token. Only 'raw' returns them.
        norm_eps: Epsilon of the LayerNorms.
        init_cfg: See `mmengine.model.BaseModule`, e.g. `dict(type='Pretrained', checkpoint=...)` with a checkpoint of
            this package or of another project that `simmim convert` knows (see `PretrainedViT`).

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    def __init__(
        self,
        arch: str | dict[str, int] = 'base',
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.1,
        use_shared_rel_pos_bias: bool = True,
        use_rel_pos_bias: bool = False,
        use_abs_pos_embed: bool = False,
        out_type: str = 'featmap',
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = -1,
        window_size: int = 0,
        global_blocks: Sequence[int] = (),
        dynamic_img_pad: bool = False,
        with_cp: bool = False,
        table_interpolation: str = 'geometric',
        init_cut: float = 0.02,
        num_registers: int = 0,
        norm_eps: float = 1e-6,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(parts('init_cfg', init_cfg))
        flags(use_abs_pos_embed=use_abs_pos_embed, dynamic_img_pad=dynamic_img_pad, with_cp=with_cp)
        one_table(use_shared_rel_pos_bias, use_rel_pos_bias)
        number('drop_path_rate', drop_path_rate, 0, 1, 'the published value is 0.1', ends='[)')
        number('layer_scale_init_value', layer_scale_init_value, 0, hint='0 leaves LayerScale out')
        number('init_cut', init_cut, 0, hint='the published values are 0.02 and 2', ends='(]')
        number('norm_eps', norm_eps, 0, hint='most ViTs have 1e-6', ends='(]')
        self.embed_dims, self.num_layers, num_heads, feedforward_channels = arch_settings(arch)
        self.patch_size = whole('SimMIMViT.patch_size', patch_size, 1, hint='e.g. 16')
        self.in_channels = whole('SimMIMViT.in_channels', in_channels, 1, hint='3 for RGB')
        self.out_type = choice('out_type', out_type, OUT_TYPES)
        self.table_interpolation = choice('table_interpolation', table_interpolation, INTERPOLATIONS)
        self.out_indices = rising_blocks('out_indices', out_indices, self.num_layers)
        self.frozen_stages = whole('frozen_stages', frozen_stages, -1, self.num_layers, 'the number of blocks')
        self.with_cp = with_cp
        self.dynamic_img_pad = dynamic_img_pad
        self.prefix = 1 + whole('num_registers', num_registers, 0, hint='DINOv2 has 0 or 4')
        self.img_size = sides('img_size', img_size)
        self.grid = grid_of('img_size', img_size, patch_size)

        D = self.embed_dims
        self.patch_embed = LinearPatchEmbed(
            None, patch_size, in_channels, D, strict_img_size=False, dynamic_img_pad=dynamic_img_pad
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.reg_token = nn.Parameter(torch.zeros(1, num_registers, D)) if num_registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = None
        if use_abs_pos_embed:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], D))
        self.rel_pos_bias = None
        if use_shared_rel_pos_bias:
            self.rel_pos_bias = RelativePositionBias(self.grid, num_heads, table_interpolation, self.prefix)
        table_grid = self.grid if use_rel_pos_bias else None
        widths = (D, num_heads, feedforward_channels)
        rates = [drop_path_rate * i / max(1, self.num_layers - 1) for i in range(self.num_layers)]
        self.window_sizes = window_sizes(window_size, global_blocks, self.num_layers)  # of each block
        self.blocks = nn.ModuleList(
            Block(*widths, rate, layer_scale_init_value, table_grid, window, table_interpolation, self.prefix, norm_eps)
            for rate, window in zip(rates, self.window_sizes)
        )
        pooled = out_type == 'avg_featmap'
        self.norm = nn.Identity() if pooled else nn.LayerNorm(D, eps=norm_eps)
        self.fc_norm = nn.LayerNorm(D, eps=norm_eps) if pooled else nn.Identity()
        init_parameters(self, init_cut)
        if self.frozen_stages > 0:
            self._freeze()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Features of normalised images.

        Args:
            x: (B, in_channels, H, W); H and W are multiples of `patch_size`, unless `dynamic_img_pad`.
            mask: (B, H / patch_size, W / patch_size), 1 = replaced by the mask token. None: no mask.

        Returns:
            One tensor per block of `out_indices`, in the order of the blocks, shaped as `out_type` says.

        Raises:
            ValueError: Channels or sides of `x`, or the shape of `mask`, do not fit.
        """
        x, grid, shared = self._embed(x, mask)
        outputs = []
        for i, block in enumerate(self.blocks):
            x = self._run(block, x, grid, shared)
            if i in self.out_indices:
                last = i == self.num_layers - 1
                outputs.append(self._format_output(self.norm(x) if last else x, grid))
        return tuple(outputs)

    def _embed(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Grid, Biases | None]:
        """Input of the blocks: tokens (B, prefix + h*w, D), their grid, and the biases of a shared table."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'SimMIMViT has in_channels={self.in_channels}, but got an input of shape {tuple(x.shape)}; '
                'set in_channels of the backbone, or the channels of LoadImage, so that they agree'
            )
        height, width = x.shape[2:]
        if torch.jit.is_tracing():  # tensors there; the trace is for this size
            height, width = int(height), int(width)
        if self.dynamic_img_pad:  # patch_embed pads
            height, width = height + -height % self.patch_size, width + -width % self.patch_size
        grid = (height // self.patch_size, width // self.patch_size)
        if 0 in grid or height % self.patch_size or width % self.patch_size:
            grid_of('input', (height, width), self.patch_size, 'dynamic_img_pad=True pads inputs')  # raises
        x = self.patch_embed(x)  # (B, h*w, D)
        # In bfloat16 under autocast, like queries and keys.
        shared = shared_biases(self.rel_pos_bias, self.window_sizes, grid, x.dtype)
        x = self._apply_mask(x, mask, grid)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # (B, 1 + h*w, D)
        if self.pos_embed is not None:
            same = grid == self.grid
            x = x + (self.pos_embed if same else resample_abs_pos_embed(self.pos_embed, list(grid), list(self.grid)))
        if self.reg_token is not None:
            x = torch.cat((x[:, :1], self.reg_token.expand(x.shape[0], -1, -1), x[:, 1:]), dim=1)
        return x, grid, shared

    def _apply_mask(self, x: Tensor, mask: Tensor | None, grid: Grid) -> Tensor:
        if mask is None:
            # Adds 0, so that the mask token gets a gradient: DistributedDataParallel expects one of every parameter.
            return x + 0 * self.mask_token if self.training and self.mask_token.requires_grad else x
        if mask.shape != (x.shape[0], *grid):
            raise ValueError(
                f'mask of shape {tuple(mask.shape)} does not fit: expected {(x.shape[0], *grid)}, one value per patch; '
                f'set model_patch_size={self.patch_size} in SimMIMMaskGenerator, or input_size (in patches) in '
                'BEiTMaskGenerator'
            )
        weight = mask.flatten(1).unsqueeze(-1).to(x.dtype)  # (B, h*w, 1)
        return x * (1 - weight) + self.mask_token.to(x.dtype) * weight

    def _run(self, block: nn.Module, x: Tensor, grid: Grid, shared: Biases | None) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(block, x, grid, shared, use_reentrant=False)
        return block(x, grid, shared)

    def _format_output(self, x: Tensor, grid: Grid) -> Tensor:
        if self.out_type == 'raw':
            return x
        if self.out_type == 'cls_token':
            return x[:, 0]
        if self.out_type == 'avg_featmap':
            return self.fc_norm(x[:, self.prefix :].mean(dim=1))
        return self._as_map(x, grid)

    def _as_map(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, prefix + h*w, D) -> (B, D, h, w), of the patches."""
        return x[:, self.prefix :].transpose(1, 2).unflatten(2, grid)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        attention_of: tuple[int, int] | None = None,
    ) -> tuple[Tensor, list[Any]]:
        """Features after chosen blocks, without a mask, as timm's method; optionally the attention of a patch.

        Args:
            x: See `forward`.
            indices: Blocks from 0, rising; negative ones count from the end. An int n: the last n. None: all.
            return_prefix_tokens: Add the class token and the registers, (B, 1 + num_registers, embed_dims).
            attention_of: Row and column of a patch. Add its attention to all patches, (B, heads, h, w): the softmax
                over all keys without the class token's and the registers' share, so it sums to less than 1. No other
                row is computed.

        Returns:
            All tokens after the final norm, (B, 1 + num_registers + h*w, embed_dims), and one entry per chosen block:
            its feature map (B, embed_dims, h, w) before that norm, or a tuple of the map and the additions.

        Raises:
            ValueError: See `forward`; or a block or patch does not exist, or `attention_of` is given for a model with
                attention windows.
        """
        wanted = self.num_layers if indices is None else indices
        wanted = tuple(range(-wanted, 0) if isinstance(wanted, int) else wanted)
        chosen = rising_blocks('indices', wanted, self.num_layers)
        x, grid, shared = self._embed(x, None)
        query = None if attention_of is None else self._token_of(attention_of, grid)
        entries: list[Any] = []
        block: Any  # a Block
        for i, block in enumerate(self.blocks):
            before, x = x, self._run(block, x, grid, shared)
            if i not in chosen:
                continue
            entry = [self._as_map(x, grid)]
            if return_prefix_tokens:
                entry.append(x[:, : self.prefix])
            if query is not None:
                attention = block.attention_of(before, grid, shared, query)  # (B, heads, N)
                entry.append(attention[..., self.prefix :].unflatten(-1, grid))
            entries.append(tuple(entry) if len(entry) > 1 else entry[0])
        return self.norm(x), entries

    def _token_of(self, patch: tuple[int, int], grid: Grid) -> int:
        """Index of the token of a patch; the model must have global attention only."""
        row, column = patch
        h, w = grid
        if not (0 <= row < h and 0 <= column < w):
            raise ValueError(
                f'attention_of={patch} is outside the {h} x {w} patches; give row 0 ... {h - 1}, column 0 ... {w - 1}'
            )
        if any(has_windows(grid, size) for size in self.window_sizes):
            raise ValueError(
                f'attention_of={patch}: some blocks attend inside windows only, so no token sees the whole image; '
                'build the backbone with window_size=0, or leave attention_of out'
            )
        return self.prefix + row * w + column

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter, for layer-wise learning rates; called by MMPretrain's constructor.

        Args:
            param_name: Name of the parameter, with the prefix.
            prefix: Name of the backbone and a dot.

        Returns:
            Layer and number of layers: 0 for the embedding, i + 1 for block i, the last for everything else, the
            classifier included.
        """
        layers = self.num_layers + 2
        name = param_name.removeprefix(prefix)
        if param_name.startswith(prefix) and name.startswith('blocks.'):
            return int(name.split('.')[1]) + 1, layers
        first = ('patch_embed.', 'cls_token', 'reg_token', 'mask_token', 'pos_embed')
        return (0 if param_name.startswith(prefix) and name.startswith(first) else layers - 1), layers

    def train(self, mode: bool = True) -> 'SimMIMViT':
        """Set the training mode; frozen blocks stay in evaluation mode (no drop path)."""
        super().train(mode)
        if mode and self.frozen_stages > 0:
            for part in self._frozen_parts():
                part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        parts: list[nn.Module] = [self.patch_embed, *self.blocks[: self.frozen_stages]]
        if self.frozen_stages == self.num_layers:
            parts += [self.norm, self.fc_norm, *([] if self.rel_pos_bias is None else [self.rel_pos_bias])]
        return parts

    def _freeze(self) -> None:
        for token in (self.cls_token, self.reg_token, self.mask_token, self.pos_embed):
            if token is not None:
                token.requires_grad_(False)
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def init_weights(self) -> None:
        """Initialise as `init_cfg` says, with `Pretrained` replaced by our `PretrainedViT`, which runs last."""
        init_cfg: Any = getattr(self, 'init_cfg', None)
        self.init_cfg = with_our_loader(init_cfg)
        super().init_weights()
        self.init_cfg = init_cfg

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load weights of another grid, or with a shared bias table; see `fit_state`."""
        own = {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}
        fitted = fit_state(self, own)
        for name in own:
            if name not in fitted.skipped:
                del state_dict[prefix + name]
        state_dict.update({prefix + name: value for name, value in fitted.state.items()})
        if fitted.state.keys() != own.keys() or fitted.resized:
            print_log(fitted.report('a state dict'), 'current')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
