"""Checkpoints' weights into models: checked, made to fit, or with the model rebuilt from the checkpoint alone."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from simmim_plugin.checkpoints.files import NOTE, load_file, tensors_of
from simmim_plugin.checkpoints.state_dicts import backbone_state
from simmim_plugin.models.fit import Fitted, fit_state
from simmim_plugin.models.layers.relative_position import Grid
from simmim_plugin.models.vit import SimMIMViT
from simmim_plugin.registry import SCOPE, WEIGHT_INITIALIZERS, build_part

FIRST_BLOCK = 'blocks.0.norm1.weight'  # a name that every SimMIMViT has


def check_fits(model_state: Mapping[str, Tensor], state: Mapping[str, Tensor], complete: bool) -> None:
    """Refuse weights of another architecture, naming the first differences.

    Args:
        model_state: The model's state dict.
        state: The checkpoint's.
        complete: Also refuse a checkpoint that lacks some of the model's entries.

    Raises:
        ValueError: Shapes differ, or one has entries that the other lacks.
    """
    faults = [
        f'{name} is {tuple(state[name].shape)} in the checkpoint and {tuple(value.shape)} in the model'
        for name, value in model_state.items()
        if name in state and state[name].shape != value.shape
    ]
    faults += [f'{name} is not in the model' for name in state if name not in model_state]
    missing = [f'{name} is not in the checkpoint' for name in model_state if name not in state]
    if complete:
        faults += missing
    if faults:
        more = f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''
        raise ValueError(
            f'the checkpoint is of another architecture: {faults[0]}{more}; use the config that it was trained with'
        )


def fit_checkpoint(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Keep of a checkpoint what a model can take, its backbone's weights made to fit (`fit_state`), and report it.

    Args:
        model: One with a SimMIMViT in it; other models and their checkpoints are left alone.
        checkpoint: Of any kind that `tools/convert_checkpoint.py` knows; its `state_dict` is replaced.

    Raises:
        ValueError: Nothing fits the backbone, or its shapes do not.
    """
    found = next(((name, part) for name, part in model.named_modules() if isinstance(part, SimMIMViT)), None)
    if found is None:
        return
    prefix, backbone = (f'{found[0]}.' if found[0] else ''), found[1]
    tensors = tensors_of(checkpoint)
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if FIRST_BLOCK not in own:  # names of another project, or another prefix
        own = backbone_state(tensors)
    fitted = fit_state(backbone, own, noted_grid(checkpoint))
    state = {prefix + name: value for name, value in fitted.state.items()}
    skipped = [prefix + name for name in fitted.skipped]
    present = model.state_dict()
    for name, value in tensors.items():
        if not name.startswith(prefix):
            if name in present and present[name].shape == value.shape:
                state[name] = value
            else:
                skipped.append(name)
    kept = {name: value for name, value in present.items() if name not in state}
    print_log(Fitted(state, skipped, fitted.resized, list(kept)).report('load_from'), 'current')
    # With the model's own, so that MMEngine does not warn of what was just told; a sharded model takes whole ones only.
    checkpoint['state_dict'] = state | {name: value for name, value in kept.items() if not isinstance(value, DTensor)}


def load_pretrained(path: str | os.PathLike[str], device: str = 'cpu') -> tuple[Any, list[dict[str, Any]]]:
    """Rebuild a pretrained model from its checkpoint alone.

    Args:
        path: A checkpoint of a pretraining, written by `SimMIMCheckpointHook`.
        device: Where the model shall live.

    Returns:
        The model (`SimMIM`, in evaluation mode) and the pipeline that it was trained with.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint of this package, or of a classifier.
    """
    checkpoint = load_file(path)
    if NOTE not in checkpoint:
        raise ValueError(
            f'checkpoint {os.fspath(path)!r} carries no config of {SCOPE}; trainings with SimMIMCheckpointHook '
            'write one, and `simmim convert SRC DST --to plugin` does'
        )
    note = checkpoint[NOTE]
    kind = str(note['model'].get('type')).split('.')[-1]
    if kind != 'SimMIM':
        raise ValueError(
            f'checkpoint {os.fspath(path)!r} holds a {kind}, which reconstructs nothing; give one of a pretraining '
            '(features: `simmim features`, accuracy: `simmim test`)'
        )
    model = build_part(note['model'])
    check_fits(model.state_dict(), checkpoint['state_dict'], complete=True)
    model.load_state_dict(checkpoint['state_dict'])
    return model.to(device).eval(), note['pipeline']


@WEIGHT_INITIALIZERS.register_module()
class PretrainedViT:
    """Load a checkpoint into a `SimMIMViT`: what `init_cfg=dict(type='Pretrained', ...)` of one means.

    Unlike MMEngine's `Pretrained` it runs nothing in the file, and refuses what does not fit.

    Args:
        checkpoint: See `load_pretrained_weights`.
        prefix: See `load_pretrained_weights`.
    """

    def __init__(self, checkpoint: str, prefix: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix

    def __call__(self, module: SimMIMViT) -> None:
        """Load the weights."""
        load_pretrained_weights(module, self.checkpoint, self.prefix)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'SimMIMViT: loaded from {self.checkpoint}')


def load_pretrained_weights(model: nn.Module, checkpoint: str | os.PathLike[str], prefix: str | None = None) -> Fitted:
    """Load a checkpoint of ours, or one that `tools/convert_checkpoint.py` knows, into a SimMIMViT, and say what was.

    It is read without running anything in it (`load_file`).

    Args:
        model: A `SimMIMViT`.
        checkpoint: Path, or what MMEngine's file clients take (http://, s3:// ...).
        prefix: Take only what has this prefix, as with MMEngine's `Pretrained`; None: the source is recognised.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Nothing could be loaded, or it does not fit.
    """
    if '://' in os.fspath(checkpoint):
        with get_local_path(checkpoint) as local:
            content = load_file(local, objects='known')
    else:
        content = load_file(checkpoint, objects='known')
    try:
        if prefix:
            own = {k.removeprefix(prefix): v for k, v in tensors_of(content).items() if k.startswith(prefix)}
            if not own:
                raise ValueError(f'nothing was loaded: no tensor has the prefix {prefix!r}; leave prefix out')
        else:
            own = backbone_state(content)
        fitted = fit_state(model, own, noted_grid(content))
    except ValueError as error:
        raise ValueError(f'{os.fspath(checkpoint)!r}: {error}') from error
    model.load_state_dict(fitted.state, strict=False)
    print_log(fitted.report(os.fspath(checkpoint)), 'current')
    return fitted


def noted_grid(checkpoint: Mapping[str, Any]) -> Grid | None:
    """Grid in patches of the backbone whose config a checkpoint of ours carries; None without one."""
    backbone = checkpoint.get(NOTE, {}).get('model', {}).get('backbone')
    if not backbone:
        return None
    size, patch = backbone.get('img_size', 224), backbone.get('patch_size', 16)
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch, width // patch


def load_backbone(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, out_type: str | None = None
) -> SimMIMViT:
    """Build the backbone of a checkpoint of this package, pretrained or fine-tuned, without its head.

    Args:
        path: Written by a run here, or by `tools/convert_checkpoint.py --to plugin`.
        size: Height and width in pixels; bias tables and position embedding are interpolated to it once. None: the
            training's.
        out_type: See `SimMIMViT`; None: the training's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint of this package, or an argument does not go with it.
    """
    checkpoint = load_file(path)
    config = (checkpoint.get(NOTE) or {}).get('model', {}).get('backbone')
    if not isinstance(config, dict):
        raise ValueError(
            f'checkpoint {os.fspath(path)!r} carries no config of {NOTE}; make one that does: '
            '`simmim convert SRC DST --to plugin`'
        )
    state = backbone_state(checkpoint)
    plain = {'frozen_stages', 'with_cp', 'init_cfg', 'out_indices'}  # matter in training alone
    config = {name: value for name, value in config.items() if name not in plain}
    grid = build_part(config).grid
    config |= {} if size is None else dict(img_size=list(size))
    config |= {} if out_type is None else dict(out_type=out_type)
    backbone = build_part(config)
    norm = 'fc_norm' if backbone.out_type == 'avg_featmap' else 'norm'
    if f'{norm}.weight' not in state:
        trained = 'avg_featmap' if norm == 'norm' else 'featmap, cls_token or raw'
        raise ValueError(f'--out-type {backbone.out_type} needs {norm}, which this checkpoint has not; use {trained}')
    state.setdefault('mask_token', torch.zeros_like(state['cls_token']))  # has no part without a mask
    fitted = fit_state(backbone, state, grid).state
    check_fits(backbone.state_dict(), fitted, complete=True)
    backbone.load_state_dict(fitted)
    return backbone.eval()


def checked_backbone(model: Any, checkpoint: str | os.PathLike[str]) -> SimMIMViT:
    """The model's backbone; ValueError, naming the checkpoint, where it is of another kind."""
    if not isinstance(model.backbone, SimMIMViT):
        kind = type(model.backbone).__name__
        raise ValueError(f'checkpoint {os.fspath(checkpoint)!r} holds a {kind}, not a SimMIMViT')
    return model.backbone
