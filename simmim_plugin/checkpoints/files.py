"""Read and write checkpoint files, .pth and .safetensors: reading runs no code, writing is atomic."""

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
from simmim_plugin.utils.arguments import choice
from simmim_plugin.utils.files import printable, whole_file

NOTE = SCOPE  # key of the plain config in a checkpoint
SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')
OBJECTS = ('refuse', 'known', 'ignore')
DEPTH, ENTRIES = 64, 10**6  # of dicts and lists in a file; real ones have some 10 and 10^4
NESTS = ('state_dict', 'model', 'teacher')  # keys of the state dict in a checkpoint
# What a weight is called, by the end of its name; other tensors, buffers, may be of whole numbers.
WEIGHT = re.compile(r'(weight|bias|tokens?|pos_embed(ding)?|position_embeddings|table|gamma(_\d)?|lambda_?\d)$')
# Classes in checkpoints of other projects: harmless and not needed here. They are neither imported nor built.
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
    """Stand-in for an object of a class that is not imported: accepts its arguments and state, and does nothing."""

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
    """Stand-in for a mapping class: PyTorch's reader only fills plain mappings."""

    def __new__(cls, *args: Any) -> Any:
        """Make an empty OrderedDict, whatever the arguments."""
        del args
        return OrderedDict()


def load_file(path: str | os.PathLike[str], map_location: str = 'cpu', objects: str = 'refuse') -> dict[str, Any]:
    """Read a checkpoint, without importing or running anything that it names except PyTorch's functions for tensors.

    Args:
        path: A file of `torch.save` or a .safetensors file, from `save_file` or with tensors only.
        map_location: Device for the tensors.
        objects: What to do with Python objects other than tensors, numbers and strings. 'refuse': refuse the file;
            'known': replace those of well-known harmless classes (`KNOWN_OBJECTS`: configs, histories, NumPy values)
            by empty objects and refuse others; 'ignore': replace those of any class.

    Returns:
        The content; for a .safetensors file, a dict with `state_dict` and, if it has a config, `simmim_plugin`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint or holds refused objects, or `objects` is unknown.
    """
    choice('objects', objects, OBJECTS)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {os.fspath(path)!r} does not exist (from {os.getcwd()})')
    if Path(path).suffix == '.safetensors':
        return _load_safetensors(path, map_location)
    zipped = _is_zip(path)
    if zipped:
        _check_members(path)
    stand_ins: dict[str, type] = {}
    while True:  # each round replaces one more class; with mmap, a failed round reads no tensors
        try:
            with torch.serialization.safe_globals([(cls, name) for name, cls in stand_ins.items()]):
                content = torch.load(path, map_location=map_location, weights_only=True, mmap=zipped)
            break
        except Exception as error:  # torch raises anything from EOFError to KeyError for damaged files
            if not _replace_one_more(str(error), stand_ins, objects):
                raise ValueError(f'checkpoint {os.fspath(path)!r} cannot be read: {_reason(str(error))}') from error
    _check_ends(path, content)
    return content


def _is_zip(path: str | os.PathLike[str]) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged end
        return True


def _check_members(path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless a zip file holds its members as they are, as `torch.save` writes them.

    PyTorch maps the file into memory, where it would take compressed bytes for weights; and what a few compressed
    bytes become has no bound.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f'checkpoint {os.fspath(path)!r} cannot be read: it is damaged or no checkpoint') from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(
            f'checkpoint {os.fspath(path)!r} cannot be read: its members are compressed, which torch.save does not do; '
            'unpack it and pack it without compression: unzip FILE -d FOLDER; cd FOLDER; zip -0 -r NEW.pth .'
        )
    if sum(member.file_size for member in members) > os.path.getsize(path):
        raise ValueError(f'checkpoint {os.fspath(path)!r} cannot be read: it is damaged, its members are too long')


def _check_ends(path: str | os.PathLike[str], content: Any) -> None:
    """Raise ValueError if dicts and lists contain themselves, or so much that whoever walks them would not end."""
    stack, seen = [(content, 0)], 0
    while stack:
        value, depth = stack.pop()
        seen += 1
        if depth > DEPTH or seen > ENTRIES:
            what = f'is nested more than {DEPTH} deep' if depth > DEPTH else f'holds more than {ENTRIES} values'
            raise ValueError(f'checkpoint {os.fspath(path)!r} cannot be read: it {what}')
        if isinstance(value, Mapping):
            stack += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple | set):
            stack += [(item, depth + 1) for item in value]


def _replace_one_more(message: str, stand_ins: dict[str, type], objects: str) -> bool:
    """Add a stand-in for the class that torch rejects; False if that is not allowed."""
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
        return f'it holds Python objects ({found[1]}), which are always refused: this one would run commands'
    if found := re.search(r'GLOBAL (\S+)', message):
        return (
            f'it holds Python objects ({found[1]}), which are refused. To take only the tensors, write a new file: '
            '`simmim convert SRC DST --to plugin --ignore-objects` (or --to another kind), which runs nothing in it'
        )
    return 'it is damaged or no checkpoint'


def _load_safetensors(path: str | os.PathLike[str], map_location: str) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, 'pt', device=map_location) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f'checkpoint {os.fspath(path)!r} cannot be read: it is damaged or no checkpoint') from error
    try:
        note = {NOTE: json.loads(metadata[NOTE])} if NOTE in metadata else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f'checkpoint {os.fspath(path)!r} cannot be read: its config is no JSON') from error
    _check_ends(path, note)
    return {'state_dict': tensors, **note}


def tensors_of(checkpoint: Any) -> dict[str, Tensor]:
    """State dict of a checkpoint, taken out of `state_dict`, `model` or `teacher`, without the prefixes of wrappers.

    Args:
        checkpoint: What `load_file` returns, or a state dict.

    Raises:
        ValueError: It has no named tensors, a name has control characters, or a weight is no dense tensor of
            floating-point numbers.
    """
    state = checkpoint
    for _ in range(DEPTH):
        if not isinstance(state, Mapping):
            break
        nested = next((state[key] for key in NESTS if isinstance(state.get(key), Mapping)), None)
        if nested is None:
            break
        state = nested
    else:
        state = None  # it contains itself
    tensors = {}
    if isinstance(state, Mapping):
        tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if odd := next((name for name in tensors if printable(name) != name), None):
        raise ValueError(f'a tensor is called {odd!r}; names with control characters are refused')
    if not tensors:
        raise ValueError(_without_tensors(state))
    for name, value in tensors.items():
        if what := _no_weight(name, value):
            raise ValueError(
                f'{name} is {what}; the weights of a model are dense tensors of floating-point numbers: save them so'
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f'{name} has more values than the file holds: {tuple(value.shape)}')
    for prefix in ('module.', '_orig_mod.'):  # DistributedDataParallel, torch.compile
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _without_tensors(state: Any) -> str:
    """What a checkpoint is that has no state dict where one is looked for."""
    parts = state if isinstance(state, Mapping) else {}
    inside = [
        key
        for key, value in parts.items()
        if isinstance(value, Mapping) and any(isinstance(x, Tensor) for x in value.values())
    ]
    if inside:
        return (
            f'the checkpoint holds no state dict as {", ".join(NESTS)}, but named tensors as '
            f'{", ".join(map(repr, inside))}; write a file of them: torch.save(torch.load(SRC)[{inside[0]!r}], NEW)'
        )
    what = type(state).__qualname__.split('.')[-1]
    return (
        f'the checkpoint holds no state dict (named tensors), but an object of type {what}. If it is a whole pickled '
        'model, load it where you trust it and save its weights: torch.save(model.state_dict(), PATH)'
    )


def _no_weight(name: str, value: Tensor) -> str:
    """What a tensor is that could not be copied into a model, or not without another meaning; '' if it can be."""
    if value.is_nested:
        return 'a nested tensor'
    if value.layout is not torch.strided:
        return f'a sparse tensor ({value.layout})'
    if value.is_quantized:
        return f'a quantised tensor ({value.dtype})'
    if value.is_meta:
        return "a tensor on the device 'meta', without values"
    whole = not value.is_floating_point() and WEIGHT.search(name)
    return f'of {value.dtype}' if value.is_complex() or whole else ''


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless the name has the ending of a checkpoint file."""
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f'checkpoint {os.fspath(path)!r}: the name must end in {", ".join(SUFFIXES)}')


def save_file(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint atomically: under a temporary name, then renamed.

    Args:
        checkpoint: A state dict, or a dict with one as `state_dict` or `model`. A .safetensors file holds its tensors
            and the config `checkpoint['simmim_plugin']` as JSON (tuples become lists); the rest is dropped.
        path: Ends in .pth, .pt or .bin (`torch.save`), or .safetensors. Missing folders are created.

    Raises:
        ValueError: The ending is another one, there are no tensors, or the config is not plain data.
    """
    check_suffix(path)
    path = Path(path)
    metadata = {'format': 'pt'}
    if path.suffix == '.safetensors' and NOTE in checkpoint:
        try:
            metadata[NOTE] = json.dumps(checkpoint[NOTE])
        except TypeError as error:
            raise ValueError(f'the config in the checkpoint is not plain data ({error}); write a .pth file') from error
    with whole_file(path) as part:
        if path.suffix == '.safetensors':
            # Copies: safetensors writes neither views of larger tensors nor one tensor under two names.
            tensors = {name: value.detach().contiguous().clone() for name, value in tensors_of(checkpoint).items()}
            part.touch()
            mode = part.stat().st_mode
            safetensors.torch.save_file(tensors, part, metadata)
            part.chmod(mode)  # by the umask; safetensors creates files that only their owner can read
        else:
            torch.save(_compact(checkpoint), part)


def _compact(value: Any) -> Any:
    """Copy tensors that are views: `torch.save` would write the tensors that they are views of."""
    if isinstance(value, Mapping):
        return {key: _compact(item) for key, item in value.items()}
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() != value.nbytes:
        return value.detach().clone()
    return value
