"""Checkpoints' weights into models: checked, made to fit, or with the model rebuilt from the checkpoint alone."""

import os
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from simmim_plugin.backbone import SimMIMViT
from simmim_plugin.checkpoint_file import NOTE, load_file, tensors_of
from simmim_plugin.conversion import backbone_state
from simmim_plugin.pretrained import Fitted, fit_state, noted_grid
from simmim_plugin.registry import SCOPE, build_part

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
