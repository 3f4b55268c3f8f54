"""Convert checkpoint files between code bases, with the configs that belong to them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simmim_plugin.checkpoints import swin_files
from simmim_plugin.checkpoints.files import NOTE, SUFFIXES, check_suffix, save_file
from simmim_plugin.checkpoints.inner_weights import inner_state
from simmim_plugin.checkpoints.other_projects import (
    Facts,
    assumptions,
    backbone_config,
    check_mean_std,
    check_stated_heads,
    facts_of,
    note_of,
)
from simmim_plugin.checkpoints.resizing import change, source_size, take_decoder
from simmim_plugin.checkpoints.saved import Saved, named, read
from simmim_plugin.checkpoints.state_dicts import (
    BACKBONE,
    TARGETS,
    decodes_pixels,
    family_of,
    from_plugin,
    recognise,
    to_plugin,
)
from simmim_plugin.checkpoints.swin import kind_of
from simmim_plugin.checkpoints.swin_files import MASK_TOKEN
from simmim_plugin.checkpoints.their_configs import hf_class, hf_config, mmpretrain_config, timm_line, write_hf
from simmim_plugin.models.fit import check_fits
from simmim_plugin.registry import build_part
from simmim_plugin.utils.arguments import choice, sides
from simmim_plugin.utils.configs import type_name
from simmim_plugin.utils.meta import on_meta


class Report(NamedTuple):
    """Result of a conversion."""

    kind: str  # of the source
    tensors: int  # written
    left_out: list[str]  # names in the source
    notes: list[str]  # what was assumed or added, and how to build the model


def convert_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str,
    img_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    objects: str = 'known',
    in_channels: int | None = None,
    channels: str = 'repeat',
    patch_size: int | None = None,
) -> Report:
    """Convert a checkpoint file (for Hugging Face, a folder) to another kind.

    Args:
        source: The file, whose kind is detected; or a Hugging Face folder with `model.safetensors` or
            `pytorch_model.bin`, and `config.json`.
        target: A .pth, .pt or .safetensors file; a folder for 'hf'.
        to: 'plugin', 'official', 'timm', 'hf', 'mmpretrain' or 'backbone'.
        img_size: Image height and width of the result in pixels, to which bias tables and position embedding are
            interpolated; None: those of the source. Where the source does not say its own, they are these if its rows
            fit them, else square.
        num_heads: Number of attention heads, needed only without bias tables and for models of unusual widths.
        mean: Per-channel mean in the units of the stored images, for the configs written. None: what the source says,
            else ImageNet's for three channels.
        std: Per-channel standard deviation; see `mean`.
        objects: See `load_file`.
        in_channels: Channels of the images of the result; None: those of the source. A decoder for others is left out.
        channels: How weights are adapted to other channels, see `adapt_channels`.
        patch_size: Side of a patch of the result in pixels, see `resizing.change`; None: that of the source. A decoder
            for another is left out.

    Raises:
        FileNotFoundError: There is no source.
        ValueError: The kind of the source is unknown, the target cannot hold it, or an argument does not fit.
    """
    choice('to', to, TARGETS)
    source, target = Path(source), Path(target)
    _check_target(source, target, to)
    saved = read(source, objects)
    saved.check_activation()
    if type_name(saved.part('backbone')) == 'MaskedBackbone':
        options = dict(img_size=img_size, num_heads=num_heads, patch_size=patch_size, in_channels=in_channels)
        return _convert_inner(saved, target, to, **options, mean=mean, std=std)
    if kind_of(saved.state):
        _check_given(saved, to, num_heads, (mean, std))
        sizes = (img_size, num_heads, patch_size)
        return Report(*swin_files.convert(saved, target, to, *sizes, mean, std, in_channels, channels))
    kind = recognise(saved.state)
    notes: list[str] = []
    size = img_size and sides('--img-size', img_size)
    state, left_out = to_plugin(saved.state, num_heads is not None, saved.grid, size, notes)
    check_stated_heads(saved.num_heads, state)
    _check_given(saved, to, num_heads, (mean, std))
    notes += _with_norm(state) if kind == 'hf' else []
    stated = saved.part('backbone')
    size, eps = source_size(saved, state, size), stated.get('norm_eps', 1e-6)
    before = facts_of(state, size, num_heads or saved.num_heads, eps)
    _check_built(state, backbone_config(before))
    notes += assumptions(before, kind, stated)
    interpolation = stated.get('table_interpolation', 'geometric')
    if to != 'plugin' and not decodes_pixels(state):  # the other kinds have no decoder of another target
        left_out, before = left_out + take_decoder(state), before._replace(decoder_layers=0)
    facts, lines, removed = change(state, before, img_size, patch_size, in_channels, channels, interpolation)
    left_out, notes = left_out + removed, notes + lines
    noted = saved.part('data_preprocessor') if facts.in_channels == before.in_channels else {}
    given = (noted.get('mean'), noted.get('std')) if mean is None and std is None else (mean, std)
    if to == 'plugin' and MASK_TOKEN not in state:
        state[MASK_TOKEN] = torch.zeros_like(state['backbone.cls_token'])
        notes.append(f'added: {MASK_TOKEN}, zeros (it is used with a mask only)')
    if to == 'official' and facts.norm_eps != 1e-6:
        notes.append(f'differs: the norms there have an epsilon of 1e-6, those of SRC of {facts.norm_eps}')
    family = '' if to == 'plugin' else family_of(state, to)
    if family == 'Dinov2WithRegisters':  # always has these
        notes += _with_scales(state)
        facts = facts._replace(layer_scale=True)
    converted = from_plugin(state, to, facts.grid)
    same = (
        kind == 'plugin' and facts == before and saved.img_size in (None, facts.img_size)
    )  # else the pipeline of SRC reads other images
    notes += _write(target, to, converted.state, facts, family, saved if same else None, given, saved.head)
    return Report(kind, len(converted.state), left_out + converted.left_out, notes)


def _write(
    target: Path,
    to: str,
    state: dict[str, torch.Tensor],
    facts: Facts,
    family: str,
    like: Saved | None,
    given: tuple[Any, Any],
    head: dict[str, Any],
) -> list[str]:
    """Write a converted state dict with the configs that belong to it; lines that say how to build the model.

    Args:
        target: See `convert_file`.
        to: See `convert_file`.
        state: The converted state dict.
        facts: The architecture.
        family: See `family_of`.
        like: The source, if it is one of this package and for the same images.
        given: Mean and standard deviation, or None.
        head: See `note_of`.
    """
    if to == 'hf':
        masked = any(name.endswith('embeddings.mask_token') for name in state)
        write_hf(target, state, hf_config(facts, family, masked), family, facts.img_size, facts.in_channels, given)
        model = hf_class(facts, family)
        more = ', add_pooling_layer=False' if model == 'ViTModel' else ''
        return [f'model: transformers.{model}.from_pretrained({os.fspath(target)!r}{more})']
    wrapped: dict[str, Any] = {'model' if to == 'official' else 'state_dict': state}
    if to == 'plugin':
        wrapped[NOTE] = _note(state, facts, like, given, head)
    save_file(state if to == 'timm' else wrapped, target)
    if to == 'timm':
        patches_only = facts.absolute and state['pos_embed'].shape[1] == facts.grid[0] * facts.grid[1]
        return [f'model: {timm_line(facts, family, os.fspath(target), patches_only)}']
    return [f'model = {mmpretrain_config(facts, family)}'] if to == 'mmpretrain' else []


def _convert_inner(saved: Saved, target: Path, to: str, **options: Any) -> Report:
    """`convert_file` for a MaskedBackbone, which takes none of the options."""
    if given := [name for name, value in options.items() if value is not None]:
        flags = ', '.join(f'--{name.replace("_", "-")}' for name in given)
        raise ValueError(f'{flags}: SRC holds a MaskedBackbone, whose weights are written as they are; leave it out')
    with named(saved.path):
        state, left_out = inner_state(saved.backbone, saved.state, to)
    save_file({'state_dict': state}, target)
    return Report('plugin', len(state), left_out, [])


def _check_target(source: Path, target: Path, to: str) -> None:
    """Raise ValueError unless a kind can be written there."""
    if source.resolve() == target.resolve():
        raise ValueError(f'DST {os.fspath(target)!r} is SRC; give another name, the source is kept')
    if to != 'hf':
        check_suffix(target)
    elif target.suffix in SUFFIXES or target.is_file():
        raise ValueError(
            f'DST {os.fspath(target)!r} must be a folder for --to hf, with config.json next to the weights'
        )


def _check_built(state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Raise ValueError unless the weights are those of a backbone with this config."""
    with on_meta():
        own = build_part(config).state_dict()
    theirs = {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}
    check_fits(own, {'mask_token': own['mask_token'], **theirs})


def _with_norm(state: dict[str, torch.Tensor]) -> list[str]:
    """Add a norm behind the last block to a segmenter's backbone, which has none; lines about it."""
    if {'backbone.norm.weight', 'backbone.fc_norm.weight'} & state.keys():
        return []
    width = state['backbone.cls_token'].shape[-1]
    state |= {'backbone.norm.weight': torch.ones(width), 'backbone.norm.bias': torch.zeros(width)}
    return ['added: backbone.norm, ones and zeros (the source has no norm behind its last block)']


def _with_scales(state: dict[str, torch.Tensor]) -> list[str]:
    """Add what changes nothing: a mask token, zeros, and LayerScale, ones, where they are missing; lines about it."""
    token = state['backbone.cls_token']
    added = {} if MASK_TOKEN in state else {MASK_TOKEN: torch.zeros_like(token)}
    if 'backbone.blocks.0.gamma_1' not in state:
        blocks = sorted({name.partition('.norm1')[0] for name in state if '.norm1.' in name})
        added |= {f'{block}.gamma_{i}': torch.ones_like(token[0, 0]) for block in blocks for i in (1, 2)}
    state |= added
    return [f'added: {name}, {"zeros" if name == MASK_TOKEN else "ones"}' for name in added]


def _check_given(saved: Saved, to: str, num_heads: int | None, normalisation: tuple[Any, Any]) -> None:
    """Raise ValueError for an argument that contradicts the source, or that the target has no place for."""
    heads = saved.num_heads
    if num_heads is not None and heads not in (None, num_heads):
        raise ValueError(f'--num-heads {num_heads}: SRC states {heads}; leave it out')
    if to not in ('plugin', 'hf') and normalisation != (None, None):
        raise ValueError(
            f'--mean and --std have no place in --to {to}, which writes no config; the kinds plugin and hf have one'
        )


def _note(
    state: dict[str, torch.Tensor], facts: Facts, like: Saved | None, given: tuple[Any, Any], head: dict[str, Any]
) -> dict[str, Any]:
    """Config for a checkpoint of this package: that of the source, with another mean and std if they are given."""
    if like is None or 'pipeline' not in like.note or not like.built:  # raises, if not for tools
        return note_of(facts, *check_mean_std(facts.in_channels, *given), head)
    with named(like.path):
        _check_built(state, like.backbone)
    noted = like.part('data_preprocessor')
    if given == (noted.get('mean'), noted.get('std')):
        return like.note
    mean, std = check_mean_std(facts.in_channels, *given)
    preprocessor = {'type': 'SimMIMDataPreprocessor', **noted, 'mean': mean, 'std': std}
    return {**like.note, 'model': {**like.note['model'], 'data_preprocessor': preprocessor}}
