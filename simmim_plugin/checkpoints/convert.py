"""Convert checkpoint files between code bases, with the configs that belong to them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simmim_plugin.checkpoints import swin_files
from simmim_plugin.checkpoints.files import NOTE, SUFFIXES, check_suffix, save_file
from simmim_plugin.checkpoints.inner_weights import inner_state
from simmim_plugin.checkpoints.names import HF
from simmim_plugin.checkpoints.other_projects import (
    Facts,
    check_mean_std,
    facts_of,
    hf_config,
    hf_preprocessor,
    mmpretrain_config,
    note_of,
    timm_arguments,
)
from simmim_plugin.checkpoints.saved import HF_WEIGHTS, Saved, read
from simmim_plugin.checkpoints.state_dicts import TARGETS, from_plugin, recognise, to_plugin
from simmim_plugin.checkpoints.swin import kind_of
from simmim_plugin.models.fit import PATCHES, adapt_channels
from simmim_plugin.models.layers.architecture import ARCHS
from simmim_plugin.utils.arguments import choice, whole
from simmim_plugin.utils.configs import type_name

MASK_TOKEN = 'backbone.mask_token'


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
) -> Report:
    """Convert a checkpoint file (for Hugging Face, a folder) to another kind.

    Args:
        source: The file, whose kind is detected; or a Hugging Face folder with `model.safetensors` or
            `pytorch_model.bin`, and `config.json`.
        target: A .pth, .pt or .safetensors file; a folder for 'hf'.
        to: 'plugin', 'official', 'timm', 'hf', 'mmpretrain' or 'backbone'.
        img_size: Image height and width of the model in pixels; None: what the source says, else square.
        num_heads: Number of attention heads, needed only without bias tables and if heads are not 64 wide.
        mean: Per-channel mean in the units of the stored images, for the configs written. None: what the source says,
            else ImageNet's for three channels.
        std: Per-channel standard deviation; see `mean`.
        objects: See `load_file`.
        in_channels: Channels of the images of the result; None: those of the source. A decoder for others is left out.
        channels: How weights are adapted to other channels, see `adapt_channels`.

    Raises:
        FileNotFoundError: There is no source.
        ValueError: The kind of the source is unknown, the target cannot hold it, or an argument does not fit.
    """
    choice('to', to, TARGETS)
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        raise ValueError(f'DST {os.fspath(target)!r} is SRC; give another name, the source is kept')
    if to == 'hf' and (target.suffix in SUFFIXES or target.is_file()):
        raise ValueError(
            f'DST {os.fspath(target)!r} must be a folder for --to hf, with config.json next to the weights'
        )
    if to != 'hf':
        check_suffix(target)
    saved = read(source, objects)
    masked = type_name(saved.part('backbone')) == 'MaskedBackbone'
    if masked or kind_of(saved.state):
        swin = (saved, target, to, img_size, num_heads, mean, std, in_channels, channels)
        return _convert_inner(saved, target, to) if masked else Report(*swin_files.convert(*swin))
    kind = recognise(saved.state)
    state, left_out = to_plugin(saved.state, sure=num_heads is not None)
    _check_given(saved, to, img_size, num_heads, (mean, std))
    adapted = in_channels is not None and _adapt(state, whole('--in-channels', in_channels, 1), channels, left_out)
    notes = []
    if kind == 'hf' and not {'backbone.norm.weight', 'backbone.fc_norm.weight'} & state.keys():  # of segmentation
        width = state['backbone.cls_token'].shape[-1]
        state |= {'backbone.norm.weight': torch.ones(width), 'backbone.norm.bias': torch.zeros(width)}
        notes.append('added: backbone.norm, ones and zeros (the source has no norm behind its last block)')
    facts = facts_of(state, img_size or saved.img_size, num_heads or _num_heads(saved))
    noted = saved.part('data_preprocessor')
    given = (noted.get('mean'), noted.get('std')) if mean is None and std is None and not adapted else (mean, std)
    if facts.heads_assumed:
        notes.append(f'assumed: {facts.arch["num_heads"]} heads, 64 channels each; another number: --num-heads')
    if to == 'plugin' and MASK_TOKEN not in state:
        state[MASK_TOKEN] = torch.zeros_like(state['backbone.cls_token'])
        notes.append(f'added: {MASK_TOKEN}, zeros (it is used with a mask only)')
    converted = from_plugin(state, to, facts.grid)
    if to == 'hf':
        _write_hf(target, converted.state, facts, given)
        model = 'BeitForImageClassification' if facts.classes else 'BeitModel'
        notes.append(f'model: transformers.{model}.from_pretrained({os.fspath(target)!r})')
    else:
        wrapped: dict[str, Any] = {'model' if to == 'official' else 'state_dict': converted.state}
        if to == 'plugin':
            has_note = kind == 'plugin' and 'pipeline' in saved.note and bool(saved.built)  # raises, if not for tools
            has_note &= not adapted  # its pipeline reads other images
            changed = not has_note or (mean, std) != (None, None)
            normalisation = check_mean_std(facts.in_channels, *given) if changed else ()
            wrapped[NOTE] = _renormalised(saved, *normalisation) if has_note else note_of(facts, *normalisation)
        save_file(converted.state if to == 'timm' else wrapped, target)
    if to == 'timm':
        arguments = ', '.join(f'{name}={value!r}' for name, value in timm_arguments(facts).items())
        notes.append(f'model: timm.models.beit.Beit({arguments})')
    elif to == 'mmpretrain':
        notes.append(f'model = {mmpretrain_config(facts)}')
    return Report(kind, len(converted.state), left_out + converted.left_out, notes)


def _convert_inner(saved: Saved, target: Path, to: str) -> Report:
    """`convert_file` for a checkpoint with a MaskedBackbone."""
    state = inner_state(saved.backbone, saved.state, to)
    save_file({'state_dict': state}, target)
    return Report('plugin', len(state), [], [])


def _adapt(state: dict[str, torch.Tensor], channels: int, how: str, left_out: list[str]) -> bool:
    """Adapt a state dict to images of other channels, in place; False if it is for as many."""
    weight = state[f'backbone.{PATCHES}']
    if weight.shape[1] == channels:
        return False
    state[f'backbone.{PATCHES}'] = adapt_channels(weight, channels, how)
    for name in [name for name in state if name.startswith('head.decoder')]:  # predicts pixels of the old channels
        del state[name]
        left_out.append(name)
    return True


def _write_hf(folder: Path, state: dict[str, torch.Tensor], facts: Facts, given: tuple[Any, Any]) -> None:
    """Write weights and configs; the preprocessor config only if mean and std are known."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / HF_WEIGHTS[0])
    _write_json(folder / 'config.json', hf_config(facts, 'beit.' * bool(facts.classes) + HF['mask_token'] in state))
    if facts.in_channels == 3 or given != (None, None):
        content = hf_preprocessor(facts, *check_mean_std(facts.in_channels, *given))
        _write_json(folder / 'preprocessor_config.json', content)


def _check_given(
    saved: Saved, to: str, img_size: tuple[int, int] | None, num_heads: int | None, normalisation: tuple[Any, Any]
) -> None:
    """Raise ValueError for an argument that contradicts the source, or that the target has no place for."""
    heads, size = _num_heads(saved), saved.img_size
    if num_heads is not None and heads not in (None, num_heads):
        raise ValueError(f'--num-heads {num_heads}: SRC states {heads}; leave it out')
    if to == 'plugin' and img_size is not None and size is not None and tuple(img_size) != tuple(size):
        given, stated = (f'{shape[0]}{sign}{shape[1]}' for shape, sign in ((img_size, ' '), (size, ' x ')))
        raise ValueError(f'--img-size {given}: SRC states {stated} px; leave it out')
    if to not in ('plugin', 'hf') and normalisation != (None, None):
        raise ValueError(
            f'--mean and --std have no place in --to {to}, which writes no config; the kinds plugin and hf have one'
        )


def _renormalised(saved: Saved, mean: Sequence[float] = (), std: Sequence[float] = ()) -> dict[str, Any]:
    """The config in a checkpoint of this package, with another mean and std if they are given."""
    if not mean:
        return saved.note
    preprocessor = {'type': 'SimMIMDataPreprocessor', **saved.part('data_preprocessor'), 'mean': mean, 'std': std}
    return {**saved.note, 'model': {**saved.note['model'], 'data_preprocessor': preprocessor}}


def _num_heads(saved: Saved) -> int | None:
    arch = saved.part('backbone').get('arch')
    return (arch if isinstance(arch, dict) else ARCHS.get(str(arch), {})).get('num_heads')


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
