"""The architecture of converted weights, inferred from their shapes, and the config of our model for them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from simmim_plugin.models.fit import grid_of_table
from simmim_plugin.models.layers.relative_position import TABLE
from simmim_plugin.utils.arguments import grid_of, number, whole

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # mean and std, RGB, 0 ... 255
# Heads of the published ViT-Ti, S, B, L, H, g and G, by width, number of blocks and hidden width of the MLP.
HEADS = {
    (192, 12, 768): 3, (384, 12, 1536): 6, (768, 12, 3072): 12, (1024, 24, 4096): 16, (1280, 32, 5120): 16,
    (1408, 40, 6144): 16, (1664, 48, 8192): 16,
}  # fmt: skip
DECODER = re.compile(r'head\.decoder(\.\d+)?\.weight')


class Facts(NamedTuple):
    """Architecture of a model, inferred from its weights."""

    arch: dict[str, int]  # embed_dims, num_layers, num_heads, feedforward_channels
    patch_size: int
    in_channels: int
    img_size: tuple[int, int]
    shared_table: bool  # one relative position bias table for all blocks
    block_tables: bool  # one table per block
    absolute: bool  # absolute position embedding
    layer_scale: bool
    pooled: bool  # fc_norm on the mean of the patch tokens, instead of a final norm
    classes: int  # 0: no classifier
    decoder_layers: int  # 0: no decoder
    heads_assumed: bool  # those of published models of this size, for lack of a table
    registers: int
    norm_eps: float

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width in patches."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def out_type(self) -> str:
        """`out_type` of SimMIMViT and BEiTViT that the head takes."""
        return 'avg_featmap' if self.pooled else 'cls_token' if self.classes else 'featmap'


def facts_of(
    state: Mapping[str, Tensor],
    img_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    norm_eps: float = 1e-6,
) -> Facts:
    """Infer the architecture from a state dict.

    Args:
        state: With the names of our models, as `to_plugin` returns it.
        img_size: Image height and width in pixels; None: square, from the rows of a bias table or position embedding.
        num_heads: Number of attention heads; None: the columns of a bias table, else those of the published model of
            the same width and depth, see `HEADS`.
        norm_eps: Epsilon of the LayerNorms, which weights do not tell.

    Raises:
        ValueError: The weights do not determine the model, contradict an argument, or are not of a SimMIMViT.
    """
    patch = state.get('backbone.patch_embed.proj.weight')
    if patch is None or 'backbone.blocks.0.mlp.fc1.weight' not in state:
        raise ValueError('the checkpoint lacks backbone.patch_embed.proj.weight or the blocks of a backbone')
    embed_dims, in_channels, patch_size = patch.shape[:3]
    if patch.shape[3] != patch_size:
        raise ValueError(f'patches of {patch_size} x {patch.shape[3]} px; SimMIMViT has square patches')
    norms = [name for name in ('norm', 'fc_norm') if f'backbone.{name}.weight' in state]
    if len(norms) != 1:
        raise ValueError(f'the checkpoint has the norms {norms} after the blocks; SimMIMViT has either norm or fc_norm')
    sized = {name: value for name, value in state.items() if name.endswith(TABLE)}
    tables, absolute = list(sized.values()), 'backbone.pos_embed' in state
    if absolute:
        sized['backbone.pos_embed'] = state['backbone.pos_embed']
    grid = None if img_size is None else grid_of('--img-size', img_size, patch_size)
    if num_heads is not None:
        whole('--num-heads', num_heads, 1)
    for name, value in sized.items():
        grid = grid_of_table(name, value, grid)
    if grid is None:
        raise ValueError('the weights do not determine the image size; give it: --img-size HEIGHT WIDTH')
    columns = tables[0].shape[1] if tables else None
    if num_heads is not None and columns not in (None, num_heads):
        raise ValueError(f'--num-heads {num_heads}: the bias tables have {columns} heads')
    depth = len({name.split('.')[2] for name in state if name.startswith('backbone.blocks.')})
    hidden = state['backbone.blocks.0.mlp.fc1.weight'].shape[0]
    assumed = columns is None and num_heads is None
    heads = columns or num_heads or HEADS.get((embed_dims, depth, hidden))
    if heads is None:
        raise ValueError(
            f'the weights do not say among how many heads the {embed_dims} channels are divided (a bias table would); '
            'give --num-heads N'
        )
    if embed_dims % heads:
        raise ValueError(f'{embed_dims} channels cannot be divided among {heads} heads; give --num-heads')
    registers = state.get('backbone.reg_token')
    return Facts(
        arch=dict(embed_dims=embed_dims, num_layers=depth, num_heads=heads, feedforward_channels=hidden),
        patch_size=patch_size,
        in_channels=in_channels,
        img_size=(grid[0] * patch_size, grid[1] * patch_size),
        shared_table=f'backbone.rel_pos_bias.{TABLE}' in state,
        block_tables=f'backbone.blocks.0.attn.{TABLE}' in state,
        absolute=absolute,
        layer_scale='backbone.blocks.0.gamma_1' in state,
        pooled=norms == ['fc_norm'],
        classes=state['head.fc.weight'].shape[0] if 'head.fc.weight' in state else 0,
        decoder_layers=sum(DECODER.fullmatch(name) is not None for name in state),
        heads_assumed=assumed,
        registers=0 if registers is None else registers.shape[1],
        norm_eps=number('norm_eps', norm_eps, 0, ends='(]'),
    )


def check_stated_heads(stated: int | None, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if weights, as `to_plugin` returns them, have no place for the heads that a config states."""
    patch = state.get('backbone.patch_embed.proj.weight')
    if stated is not None and patch is not None and len(patch) % whole('num_heads', stated, 1):
        raise ValueError(
            f'its config (config.json of Hugging Face) is wrong: it states {stated} attention heads, among which '
            f'{len(patch)} channels cannot be divided; correct it'
        )


def assumptions(facts: Facts, kind: str, stated: Mapping[str, Any]) -> list[str]:
    """Lines about what neither the weights, of a kind of `recognise`, nor the config `stated` of a backbone said."""
    heads, lines = facts.arch['num_heads'], []
    if facts.heads_assumed:
        lines.append(f'assumed: {heads} heads, as in published models of this width and depth; others: --num-heads')
    if kind == 'hf' and 'norm_eps' not in stated:
        eps = f'{facts.norm_eps:g}'
        lines.append(f'assumed: an epsilon of {eps} of the norms; config.json, which says it, is not next to the file')
    return lines


def check_mean_std(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Check mean and std against the number of channels; ImageNet's for three channels if none are given.

    Raises:
        ValueError: One of them is missing or has another length, a value is not finite, or one of std not positive.
    """
    if mean is None and std is None and channels == 3:
        return list(IMAGENET[0]), list(IMAGENET[1])
    if mean is None or std is None or not all(isinstance(x, list | tuple) and len(x) == channels for x in (mean, std)):
        raise ValueError(
            f'--mean {mean} and --std {std}: {channels} values of each are needed, one per channel, in the units of '
            'the stored images (`simmim statistics` prints them)'
        )
    return [number('--mean', value) for value in mean], [number('--std', value, 0, ends='(]') for value in std]


def backbone_config(facts: Facts) -> dict[str, Any]:
    """Config of SimMIMViT."""
    return dict(
        type='simmim_plugin.SimMIMViT',
        arch=facts.arch,
        img_size=list(facts.img_size),
        patch_size=facts.patch_size,
        in_channels=facts.in_channels,
        layer_scale_init_value=0.1 if facts.layer_scale else 0.0,
        use_shared_rel_pos_bias=facts.shared_table,
        use_rel_pos_bias=facts.block_tables,
        use_abs_pos_embed=facts.absolute,
        out_type=facts.out_type,
        num_registers=facts.registers,
        norm_eps=facts.norm_eps,
    )


def note_of(
    facts: Facts, mean: Sequence[float], std: Sequence[float], head: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Config of model and pipeline for `checkpoint['simmim_plugin']`; `head` are arguments of SimMIMHead.

    With a decoder, the model is SimMIM and the pipeline that of the published pretraining at this image size; else the
    model is MMPretrain's ImageClassifier, with the classifier if there is one.
    """
    patch = facts.patch_size
    if facts.decoder_layers:
        head = dict(type='simmim_plugin.SimMIMHead', num_layers=facts.decoder_layers, **(head or {}))
        model = dict(type='simmim_plugin.SimMIM', backbone=backbone_config(facts), head=head)
        return with_input(model, facts.img_size, facts.in_channels, mean, std, (2 * patch, patch))
    return with_input(classifier_config(backbone_config(facts), facts), facts.img_size, facts.in_channels, mean, std)


def with_input(
    model: dict[str, Any],
    img_size: tuple[int, int],
    in_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    masks: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Config of a model and of how its images are read, for `checkpoint['simmim_plugin']`.

    Args:
        model: SimMIM, or MMPretrain's ImageClassifier, without its data preprocessor.
        img_size: Image height and width in pixels.
        in_channels: Channels of the images.
        mean: Per channel, in the units of the stored images.
        std: See `mean`.
        masks: Sides in pixels of a masked unit and of what the backbone masks, for SimMIM.
    """
    load: dict[str, Any] = dict(type='simmim_plugin.LoadImage')
    if in_channels != 3:
        load['channels'] = in_channels
    size = list(img_size)
    kind = 'simmim_plugin.SimMIMDataPreprocessor' if masks else 'mmpretrain.ClsDataPreprocessor'
    model = {**model, 'data_preprocessor': dict(type=kind, mean=list(mean), std=list(std))}
    if masks is None:
        return dict(model=model, pipeline=[load, dict(type='mmpretrain.torchvision/Resize', size=size, antialias=True)])
    sides = dict(mask_patch_size=masks[0], model_patch_size=masks[1])
    pipeline = [
        load,
        dict(type='simmim_plugin.RandomResizedCrop', size=size),
        dict(type='simmim_plugin.RandomHorizontalFlip'),
        dict(type='simmim_plugin.SimMIMMaskGenerator', mask_ratio=0.6, **sides),
        dict(type='simmim_plugin.PackSimMIMInputs'),
    ]
    return dict(model=model, pipeline=pipeline)


def classifier_config(backbone: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """Config of MMPretrain's ImageClassifier, with a linear head if there is a classifier."""
    head = dict(type='mmpretrain.LinearClsHead', num_classes=facts.classes, in_channels=facts.arch['embed_dims'])
    return dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head if facts.classes else None)
