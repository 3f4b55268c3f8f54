"""Weights of the model in a `MaskedBackbone`, by the names that its own library gives them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from simmim_plugin.models.fit import NOTHING, Asked, Fitted, check_fits, names_of, without_prefix
from simmim_plugin.models.libraries import build_inner, inside_of
from simmim_plugin.utils.configs import type_name
from simmim_plugin.utils.meta import on_meta

# First parts of names that belong to a task rather than to features.
TASKS = (
    'aux_head',
    'classif',
    'classifier',
    'decoder',
    'fc',
    'head',
    'head_dist',
    'heads',
    'last_linear',
    'lm_head',
    'pooler',
)
DERIVED = ('attn_mask', 'num_batches_tracked', 'relative_coords_table', 'relative_position_index')  # buffers
SPARE = 1000  # weights


def fit_inner(backbone: Any, state: Mapping[str, Tensor], asked: Asked = NOTHING) -> tuple[Fitted, dict[str, Tensor]]:
    """The weights of a file that go into a `MaskedBackbone`, each of them unchanged.

    Args:
        backbone: The `MaskedBackbone`.
        state: Weights of a checkpoint of a `MaskedBackbone` of this package, or of its `model` with the names of its
            library, alone or inside a classifier; any prefix.
        asked: Must be nothing: such weights are not adapted to other channels or blocks.

    Returns:
        What is loaded, and what of the file is not the model's.

    Raises:
        ValueError: The file is of another model: a weight is left over or missing, or of another shape. Heads and what
            the maps do not depend on may be.
    """
    asked.refuse_new_blocks('MaskedBackbone')
    if asked.channels:
        raise ValueError(
            f'adapt_channels={asked.channels!r}: weights of a MaskedBackbone are not adapted to other channels'
        )
    inner, path = inside_of(backbone.model)
    own = inner.state_dict()
    found = Counter(prefix for name in state for prefix in _prefixes(name, own))
    if not found:
        raise ValueError(
            f'it has none of the names of {type(inner).__name__} ({names_of(list(own))}), but {names_of(list(state))}'
        )
    prefix = max(found, key=lambda each: (found[each], -len(each)))
    theirs = without_prefix(state, prefix)
    unused = {name.removeprefix(f'model.{path}') for name in backbone.unused}
    strange = [name for name in theirs if name not in own and not _may_differ(name)]
    missing = [name for name in own if name not in theirs and name not in unused and not _may_differ(name)]
    shapes = [
        f'{name} {tuple(theirs[name].shape)} instead of {tuple(own[name].shape)}'
        for name in own
        if name in theirs and theirs[name].shape != own[name].shape
    ]
    faults = [('not in the model', strange), ('not in the file', missing), ('of another shape', shapes)]
    if texts := [f'{what}: {names_of(names)}' for what, names in faults if names]:
        raise ValueError(
            f'its weights are not those of this {type(inner).__name__}; {"; ".join(texts)}. Give model the arguments '
            '(size, patch, channels, depth) that it was trained with'
        )
    loaded = {f'model.{path}{name}': value for name, value in theirs.items() if name in own}
    token = prefix.removesuffix(f'model.{path}') + 'mask_token'
    if prefix.endswith('model.') and token in state and state[token].shape == backbone.mask_token.shape:
        loaded['mask_token'] = state[token]
    taken = {prefix + name for name in theirs if name in own} | ({token} if 'mask_token' in loaded else set())
    kept = [name for name in backbone.state_dict() if name not in loaded]
    others = {name: value for name, value in state.items() if name not in taken}
    return Fitted(loaded, [], [], kept), others


def inner_state(config: Mapping[str, Any], state: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """Weights of the model in the MaskedBackbone of a checkpoint, by the names of its library.

    Args:
        config: Config of the MaskedBackbone.
        state: Weights in the checkpoint.
        to: What they are converted to.

    Raises:
        ValueError: `to` is not 'backbone'.
    """
    if to != 'backbone':
        raise ValueError(
            f'--to {to}: SRC holds a MaskedBackbone; --to backbone writes the weights of its model with the names of '
            "its own library, for that library's load_state_dict"
        )
    inner = 'model.timm_model.' if type_name(config['model']) == 'TIMMBackbone' else 'model.'
    start = f'backbone.{inner}'
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _prefixes(name: str, own: Mapping[str, Tensor]) -> Iterator[str]:
    """What stands before a name of the model in a name of the file."""
    start = 0
    while True:
        if name[start:] in own:
            yield name[:start]
        if (dot := name.find('.', start)) < 0:
            return
        start = dot + 1


def _may_differ(name: str) -> bool:
    return name.split('.', maxsplit=1)[0] in TASKS or name.endswith((*DERIVED, 'mask_token'))


def check_inner(config: Mapping[str, Any], state: Mapping[str, Tensor], start: str) -> None:
    """Compare names and shapes of the model in a `MaskedBackbone` with a file, before memory is taken for any of it.

    Args:
        config: Config of the MaskedBackbone, from the file.
        state: Weights in the file.
        start: What stands before the names of the MaskedBackbone in the file.

    Raises:
        ValueError: The config is of another model than the weights, or `build_inner` refuses it.
    """
    allowed = 4 * len(state) + SPARE
    built = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal built
        built += parameter is not None
        if built > allowed:
            raise ValueError('its config describes a far larger model than its weights are of')

    hook = torch_module.register_module_parameter_registration_hook(count)
    try:
        with on_meta():
            own = build_inner(config.get('model') or {}, config.get('in_channels', 3)).model.state_dict()
    finally:
        hook.remove()
    theirs = {name: value for name, value in state.items() if name.startswith(f'{start}model.')}
    check_fits({f'{start}model.{name}': value for name, value in own.items()}, theirs)
