"""Model configs for converted weights: infer the architecture from shapes, describe it to each code base."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from simmim_plugin.models.fit import grid_of_table
from simmim_plugin.models.layers.architecture import ARCHS
from simmim_plugin.models.layers.relative_position import TABLE
from simmim_plugin.utils.arguments import grid_of, whole

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # mean and std, RGB, 0 ... 255
HEAD_DIMS = 64  # channels per attention head, usual in ViT-S/B/L
HF_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
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
    heads_assumed: bool  # 64 channels per head, for lack of a table

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width in patches."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def out_type(self) -> str:
        """`out_type` of SimMIMViT and BEiTViT that the head takes."""
        return 'avg_featmap' if self.pooled else 'cls_token' if self.classes else 'featmap'


def facts_of(
    state: Mapping[str, Tensor], img_size: tuple[int, int] | None = None, num_heads: int | None = None
) -> Facts:
    """Infer the architecture from a state dict.

    Args:
        state: With the names of our models, as `to_plugin` returns it.
        img_size: Image height and width in pixels; None: square, from the rows of a bias table or position embedding.
        num_heads: Number of attention heads; None: the columns of a bias table, else, of a model as wide and deep as
            ViT-S, B or L, 64 channels per head.

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
    arch = dict(
        embed_dims=embed_dims,
        num_layers=1 + max(int(name.split('.')[2]) for name in state if name.startswith('backbone.blocks.')),
        num_heads=columns or num_heads or embed_dims // HEAD_DIMS,
        feedforward_channels=state['backbone.blocks.0.mlp.fc1.weight'].shape[0],
    )
    assumed = columns is None and num_heads is None
    if assumed and arch not in ARCHS.values():
        raise ValueError(
            f'the weights do not say among how many heads the {embed_dims} channels are divided (a bias table would); '
            'give --num-heads'
        )
    if embed_dims % arch['num_heads']:
        raise ValueError(f'{embed_dims} channels cannot be divided among {arch["num_heads"]} heads; give --num-heads')
    return Facts(
        arch=arch,
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
    )


def check_mean_std(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Check mean and std against the number of channels; ImageNet's for three channels if none are given.

    Raises:
        ValueError: One of them is missing or has another length.
    """
    if mean is None and std is None and channels == 3:
        return list(IMAGENET[0]), list(IMAGENET[1])
    if mean is None or std is None or len(mean) != channels or len(std) != channels:
        raise ValueError(
            f'--mean {mean} and --std {std}: {channels} values of each are needed, one per channel, in the units of '
            'the stored images (`simmim statistics` prints them)'
        )
    return list(mean), list(std)


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
    )


def note_of(facts: Facts, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Config of model and pipeline for `checkpoint['simmim_plugin']`.

    With a decoder, the model is SimMIM and the pipeline that of the published pretraining at this image size; else the
    model is MMPretrain's ImageClassifier, with the classifier if there is one.
    """
    load: dict[str, Any] = dict(type='simmim_plugin.LoadImage')
    if facts.in_channels != 3:
        load['channels'] = facts.in_channels
    size = list(facts.img_size)
    if facts.decoder_layers:
        model = dict(
            type='simmim_plugin.SimMIM',
            data_preprocessor=dict(type='simmim_plugin.SimMIMDataPreprocessor', mean=list(mean), std=list(std)),
            backbone=backbone_config(facts),
            head=dict(type='simmim_plugin.SimMIMHead', num_layers=facts.decoder_layers),
        )
        masks = dict(mask_ratio=0.6, mask_patch_size=2 * facts.patch_size, model_patch_size=facts.patch_size)
        pipeline = [
            load,
            dict(type='simmim_plugin.RandomResizedCrop', size=size),
            dict(type='simmim_plugin.RandomHorizontalFlip'),
            dict(type='simmim_plugin.SimMIMMaskGenerator', **masks),
            dict(type='simmim_plugin.PackSimMIMInputs'),
        ]
        return dict(model=model, pipeline=pipeline)
    model = _classifier(backbone_config(facts), facts)
    model['data_preprocessor'] = dict(type='mmpretrain.ClsDataPreprocessor', mean=list(mean), std=list(std))
    return dict(model=model, pipeline=[load, dict(type='mmpretrain.torchvision/Resize', size=size, antialias=True)])


def _classifier(backbone: dict[str, Any], facts: Facts) -> dict[str, Any]:
    head = dict(type='mmpretrain.LinearClsHead', num_classes=facts.classes, in_channels=facts.arch['embed_dims'])
    return dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head if facts.classes else None)


def mmpretrain_config(facts: Facts) -> dict[str, Any]:
    """Config of MMPretrain's ImageClassifier with BEiTViT, for weights converted to 'mmpretrain'."""
    backbone = dict(
        type='mmpretrain.BEiTViT',
        arch=facts.arch,
        img_size=facts.img_size,
        patch_size=facts.patch_size,
        in_channels=facts.in_channels,
        final_norm=not facts.pooled,
        out_type=facts.out_type,
        use_abs_pos_emb=facts.absolute,
        use_rel_pos_bias=facts.block_tables,
        use_shared_rel_pos_bias=facts.shared_table,
        layer_scale_init_value=0.1 if facts.layer_scale else 0.0,
    )
    return _classifier(backbone, facts)


def timm_arguments(facts: Facts) -> dict[str, Any]:
    """Arguments of `timm.models.beit.Beit`."""
    return dict(
        img_size=facts.img_size,
        patch_size=facts.patch_size,
        in_chans=facts.in_channels,
        num_classes=facts.classes,
        global_pool='avg' if facts.pooled else 'token',
        embed_dim=facts.arch['embed_dims'],
        depth=facts.arch['num_layers'],
        num_heads=facts.arch['num_heads'],
        mlp_ratio=facts.arch['feedforward_channels'] / facts.arch['embed_dims'],
        init_values=0.1 if facts.layer_scale else None,
        use_abs_pos_emb=facts.absolute,
        use_rel_pos_bias=facts.block_tables,
        use_shared_rel_pos_bias=facts.shared_table,
    )


def hf_config(facts: Facts, mask_token: bool) -> dict[str, Any]:
    """Content of Hugging Face's config.json, for BeitModel or BeitForImageClassification."""
    config = dict(
        architectures=['BeitForImageClassification' if facts.classes else 'BeitModel'],
        model_type='beit',
        hidden_size=facts.arch['embed_dims'],
        num_hidden_layers=facts.arch['num_layers'],
        num_attention_heads=facts.arch['num_heads'],
        intermediate_size=facts.arch['feedforward_channels'],
        hidden_act='gelu',
        layer_norm_eps=1e-6,
        image_size=facts.img_size[0],
        patch_size=facts.patch_size,
        num_channels=facts.in_channels,
        use_mask_token=mask_token,
        use_absolute_position_embeddings=facts.absolute,
        use_relative_position_bias=facts.block_tables,
        use_shared_relative_position_bias=facts.shared_table,
        layer_scale_init_value=0.1 if facts.layer_scale else 0.0,
        drop_path_rate=0.0,
        use_mean_pooling=facts.pooled,
    )
    if facts.classes:
        config['id2label'] = {str(i): f'LABEL_{i}' for i in range(facts.classes)}
        config['label2id'] = {f'LABEL_{i}': i for i in range(facts.classes)}
    return config


def hf_preprocessor(facts: Facts, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Content of Hugging Face's preprocessor_config.json: resize, scale to 0 ... 1, normalise."""
    size = dict(height=facts.img_size[0], width=facts.img_size[1])
    return dict(
        image_processor_type='BeitImageProcessor',
        do_resize=True,
        size=size,
        resample=3,  # bicubic
        do_center_crop=False,
        crop_size=size,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[value / 255 for value in mean],
        image_std=[value / 255 for value in std],
    )


def hf_folder(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """File of the weights in a Hugging Face folder, and what its configs say, as a config of ours.

    Raises:
        ValueError: It has no weights, or those of several files.
    """
    source = Path(path)
    weights = next((source / name for name in HF_WEIGHTS if (source / name).is_file()), None)
    if weights is None:
        raise ValueError(
            f'folder {os.fspath(source)!r} has neither {HF_WEIGHTS[0]} nor {HF_WEIGHTS[1]} (weights in several files: '
            'join them by save_pretrained(..., max_shard_size="100GB"))'
        )
    model: dict[str, Any] = {}
    if (source / 'config.json').is_file():  # it may leave out defaults
        config = json.loads((source / 'config.json').read_text(encoding='utf-8'))
        arch = dict(num_heads=config.get('num_attention_heads', 12))
        sizes = dict(img_size=config.get('image_size', 224), patch_size=config.get('patch_size', 16))
        model['backbone'] = dict(**sizes, arch=arch)
    if (source / 'preprocessor_config.json').is_file():
        config = json.loads((source / 'preprocessor_config.json').read_text(encoding='utf-8'))
        if 'image_mean' in config and 'image_std' in config:
            mean, std = ([255 * value for value in config[f'image_{name}']] for name in ('mean', 'std'))
            model['data_preprocessor'] = dict(mean=mean, std=std)
    return weights, model
