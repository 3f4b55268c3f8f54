"""Checkpoint files, .pth and .safetensors: read without running what is in them, written whole or not at all."""

import json
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from simmim_plugin.registry import SCOPE
from simmim_plugin.utils.files import whole_file

NOTE = SCOPE  # key of the plain config in a checkpoint
SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')
OBJECTS = ('refuse', 'known', 'ignore')
NESTS = ('state_dict', 'model')  # keys below which checkpoints keep their tensors
# Containers in checkpoints of other projects, harmless and of no use here. They are neither imported nor built.
KNOWN_OBJECTS = frozenset(
    (
        'yacs.config.CfgNode',
        'argparse.Namespace',
        'mmengine.config.config.ConfigDict',
        'mmengine.config.config.Config',
        'mmengine.logging.history_buffer.HistoryBuffer',
        'builtins.getattr',  # how a HistoryBuffer names its methods
        'numpy.dtype',
        'numpy.ndarray',
        *(f'numpy.{core}.multiarray.{name}' for core in ('core', '_core') for name in ('scalar', '_reconstruct')),
    )
)


class _Inert:
    """Stands for an object of a class that is not imported: takes what the file says of it, and does nothing."""

    def __init__(self, *args: Any) -> None:
        del args

    def __new__(cls, *args: Any) -> Any:
        """Make an empty object, whatever the arguments."""
        del args
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Drop the state."""
        del state


class _InertMapping:
    """Stands for a class of mappings: PyTorch's reader fills plain ones only."""

    def __new__(cls, *args: Any) -> Any:
        """Make an empty OrderedDict, whatever the arguments."""
        del args
        return OrderedDict()


def load_file(path: str | os.PathLike[str], map_location: str = 'cpu', objects: str = 'refuse') -> dict[str, Any]:
    """Read a checkpoint. No class or function that it names is ever imported or run, beyond PyTorch's own for tensors.

    Args:
        path: A file of `torch.save`, or .safetensors (as `save_file` writes it, or with tensors alone).
        map_location: Device for the tensors.
        objects: What to do about Python objects, which a file may hold beside tensors, numbers and strings.
            'refuse': refuse the file; 'known': put empty objects in the place of those of well-known harmless classes
            (`KNOWN_OBJECTS`: configs, histories, NumPy values) and refuse others; 'ignore': of any class.

    Returns:
        The content; of a .safetensors file a dict with `state_dict`, and its config as `simmim_plugin` if it has one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, or holds objects that are refused; or `objects` is unknown.
    """
    if objects not in OBJECTS:
        raise ValueError(f'objects={objects!r} is unknown; choose one of {", ".join(map(repr, OBJECTS))}')
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {os.fspath(path)!r} does not exist (from {os.getcwd()})')
    if Path(path).suffix == '.safetensors':
        return _load_safetensors(path, map_location)
    stand_ins: dict[str, type] = {}
    while True:  # one more class is replaced in each round; mapped, a round reads no tensors
        try:
            with torch.serialization.safe_globals([(cls, name) for name, cls in stand_ins.items()]):
                return torch.load(path, map_location=map_location, weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # torch raises anything from EOFError to KeyError for files that are no checkpoints
            if not _replace_one_more(str(error), stand_ins, objects):
                raise ValueError(f'checkpoint {os.fspath(path)!r} cannot be read: {_reason(str(error))}') from error


def _replace_one_more(message: str, stand_ins: dict[str, type], objects: str) -> bool:
    """Find a stand-in for the class that torch complains about; False if there is none to be had."""
    if found := re.search(r'Unsupported global: GLOBAL (\S+) was not', message):
        name = found[1] if '.' in found[1] else f'builtins.{found[1]}'
        if name in stand_ins or not (objects == 'ignore' or (objects == 'known' and name in KNOWN_OBJECTS)):
            return False
        stand_ins[name] = type(name, (_Inert,), {})
        return True
    found = re.search(r"Can only SETITEMS? for .* but got <class '(\S+)'>", message)
    for name, cls in stand_ins.items():
        if found and issubclass(cls, _Inert) and found[1] == f'{cls.__module__}.{cls.__qualname__}':
            stand_ins[name] = type(name, (_InertMapping,), {})
            return True
    return False


def _reason(message: str) -> str:
    if 'is blocked' in message and (found := re.search(r'GLOBAL (\S+)', message)):
        return f'it holds Python objects ({found[1]}), which are refused always: this one would run commands'
    if found := re.search(r'GLOBAL (\S+)', message):
        return (
            f'it holds Python objects ({found[1]}), which are refused. To take the tensors alone, write a new file: '
            '`simmim convert SRC DST --to plugin --ignore-objects` (or --to another kind); nothing '
            'in the file is run then'
        )
    return 'it is damaged or no checkpoint'


def _load_safetensors(path: str | os.PathLike[str], map_location: str) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, 'pt', device=map_location) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f'checkpoint {os.fspath(path)!r} cannot be read: it is damaged or no checkpoint') from error
    note = {NOTE: json.loads(metadata[NOTE])} if NOTE in metadata else {}
    return {'state_dict': tensors, **note}


def tensors_of(checkpoint: Any) -> dict[str, Tensor]:
    """State dict of a checkpoint, without what it is wrapped in: `state_dict` or `model`, and `module.` of wrappers.

    Args:
        checkpoint: What `load_file` returns, or a state dict.

    Raises:
        ValueError: There are no named tensors.
    """
    state = checkpoint
    while isinstance(state, Mapping):
        nested = next((state[key] for key in NESTS if isinstance(state.get(key), Mapping)), None)
        if nested is None:
            break
        state = nested
    tensors = {}
    if isinstance(state, Mapping):
        tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        what = type(state).__qualname__.split('.')[-1]
        raise ValueError(
            f'the checkpoint holds no state dict (named tensors), but an object of type {what}. If it is a whole '
            'pickled model, load it where you trust it and save its weights: torch.save(model.state_dict(), PATH)'
        )
    for prefix in ('module.', '_orig_mod.'):  # DistributedDataParallel, torch.compile
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if the name does not end like a checkpoint's."""
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f'checkpoint {os.fspath(path)!r}: the name must end in {", ".join(SUFFIXES)}')


def save_file(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint; under a temporary name first, so that a file of this name is always whole.

    Args:
        checkpoint: A state dict, or a dict with one as `state_dict` or `model`. A .safetensors file takes its tensors,
            and the config `checkpoint['simmim_plugin']` as JSON (tuples become lists); the rest is left out.
        path: Ends in .pth, .pt or .bin (`torch.save`), or .safetensors. Missing folders are made.

    Raises:
        ValueError: Another ending, no tensors, or a config that is not plain.
    """
    check_suffix(path)
    path = Path(path)
    metadata = {'format': 'pt'}
    if path.suffix == '.safetensors' and NOTE in checkpoint:
        try:
            metadata[NOTE] = json.dumps(checkpoint[NOTE])
        except TypeError as error:
            raise ValueError(f'the config in the checkpoint is not plain ({error}); write a .pth file') from error
    with whole_file(path) as part:
        if path.suffix == '.safetensors':
            # Copies: neither views of larger tensors nor one tensor under two names can be written.
            tensors = {name: value.detach().contiguous().clone() for name, value in tensors_of(checkpoint).items()}
            part.touch()
            mode = part.stat().st_mode
            safetensors.torch.save_file(tensors, part, metadata)
            part.chmod(mode)  # as the umask has it; safetensors makes files for their owner alone
        else:
            torch.save(_compact(checkpoint), part)


def _compact(value: Any) -> Any:
    """Copy tensors that are views: `torch.save` would write all of what they are views of."""
    if isinstance(value, Mapping):
        return {key: _compact(item) for key, item in value.items()}
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() != value.nbytes:
        return value.detach().clone()
    return value
