"""Weights of the model in a `MaskedBackbone`, by the names that its own library gives them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from simmim_plugin.checkpoints.swin_names import BUFFERS
from simmim_plugin.models.differences import differences, names_of
from simmim_plugin.models.fit import NOTHING, Asked, Fitted, check_fits, without_prefix
from simmim_plugin.models.libraries import build_inner, inside_of, may_differ
from simmim_plugin.utils.configs import type_name
from simmim_plugin.utils.meta import on_meta

DERIVED = (*BUFFERS, 'num_batches_tracked', 'relative_coords_table')
SPARE = 1000  # weights


def fit_inner(
    backbone: Any, state: Mapping[str, Tensor], asked: Asked = NOTHING
) -> tuple[Fitted, dict[str, Tensor], list[str]]:
    """The weights of a file that go into a `MaskedBackbone`, each of them unchanged.

    Args:
        backbone: The `MaskedBackbone`.
        state: Weights of a checkpoint of a `MaskedBackbone` of this package, or of its `model` with the names of its
            library, alone or inside a classifier; any prefix.
        asked: Must be nothing: such weights are not adapted to other channels or blocks.

    Returns:
        What is loaded; what of the file is of other parts; and the names of what no other part may take: a library's
        own head, which may have norms or layers that ours lacks.

    Raises:
        ValueError: The file is of another model: a weight is left over or missing, or of another shape. Heads and what
            the maps do not depend on may be. Or it has several copies.
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
    if text := differences(own, theirs, lambda name: name in unused or _may_differ(name)):
        raise ValueError(
            f'its weights are not those of this {type(inner).__name__}; {text}. Give model the arguments (size, patch, '
            'channels, depth) that it was trained with'
        )
    if len(copies := [each for each in found if found[each] == found[prefix]]) > 1:
        raise ValueError(
            f'it has the weights of {type(inner).__name__} {len(copies)} times, with the prefixes '
            f"{', '.join(map(repr, copies))}; choose one: init_cfg=dict(type='Pretrained', checkpoint=PATH, "
            f'prefix={copies[0]!r})'
        )
    loaded = {f'model.{path}{name}': value for name, value in theirs.items() if name in own}
    token = prefix.removesuffix(f'model.{path}') + 'mask_token'
    if prefix.endswith('model.') and token in state and state[token].shape == backbone.mask_token.shape:
        loaded['mask_token'] = state[token]
    taken = {prefix + name for name in theirs if name in own} | ({token} if 'mask_token' in loaded else set())
    kept = [name for name in backbone.state_dict() if name not in loaded]
    left = [name for name in theirs if not prefix and name not in own and may_differ(name)]
    others = {name: value for name, value in state.items() if name not in taken and name not in left}
    return Fitted(loaded, [], [], kept), others, left


def inner_state(config: Mapping[str, Any], state: Mapping[str, Tensor], to: str) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of the model in the MaskedBackbone of a checkpoint, by the names of its library.

    Args:
        config: Config of the MaskedBackbone.
        state: Weights in the checkpoint.
        to: What they are converted to.

    Returns:
        The weights, and the names left out.

    Raises:
        ValueError: `to` is not 'backbone', or the weights are not those of the config.
    """
    if to != 'backbone':
        raise ValueError(
            f'--to {to}: SRC holds a MaskedBackbone; --to backbone writes the weights of its model with the names of '
            "its own library, for that library's load_state_dict"
        )
    inner = 'model.timm_model.' if type_name(config['model']) == 'TIMMBackbone' else 'model.'
    start = f'backbone.{inner}'
    check_inner(config, state, 'backbone.')
    written = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
    return written, [name for name in state if not name.startswith(start)]


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
    return may_differ(name) or name.endswith(DERIVED)


def check_untold(backbone: Any, saved: Any) -> None:
    """Raise an error if a `MaskedBackbone` would compute something else with weights than the model that they are from.

    Args:
        backbone: The `MaskedBackbone`.
        saved: The checkpoint (`Saved`): one of a MaskedBackbone, or one that states heads, epsilon or activation.

    Raises:
        ValueError: The number of heads, an activation function or the epsilon of a norm is another.
    """
    noted = saved.part('backbone')
    stated = {**{name: noted.get(name) for name in ('norm_eps', 'hidden_act')}, 'num_heads': saved.num_heads}
    if 'type' in noted and type_name(noted) != 'SimMIMViT':
        try:
            stated = _untold(_on_meta(saved.backbone, saved.state))
        except ValueError as error:  # of a type, say, that is not built from a file
            print_log(f'Heads, activations, epsilons are not compared with those of the checkpoint: {error}', 'current')
    ours = _untold(backbone.model)
    wrong = [f'{key}={stated[key]!r}, not {ours[key]!r}' for key in ours if stated.get(key) not in (None, ours[key])]
    if wrong:
        names = ('num_attention_heads', 'layer_norm_eps') if hasattr(backbone.model, 'config') else ('num_heads',)
        raise ValueError(
            f'its model has {names_of(wrong)}: weights do not tell that; give model the same as in its training '
            f'({", ".join(names)} ...)'
        )


def _untold(model: Any) -> dict[str, Any]:
    """Heads, epsilons and activation functions of a model, by its modules; and those of the whole model."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        values = {key: getattr(module, key, None) for key in ('num_heads', 'num_attention_heads', 'eps', 'approximate')}
        found |= {f'{name}.{key}': value for key, value in values.items() if isinstance(value, int | float | str)}
        kind = type(module).__name__
        bare = next(module.children(), None) is None and next(module.parameters(), None) is None
        if bare and not may_differ(name) and 'Drop' not in kind and kind != 'Identity':
            found[name] = kind
    facts = {
        'num_heads': next((value for name, value in found.items() if name.endswith('_heads')), None),
        'norm_eps': next((value for name, value in found.items() if name.endswith('.eps')), None),
    }
    if hasattr(model, 'config'):  # of Transformers, as in its config.json: some norms have a fixed epsilon
        names = dict(num_heads='num_attention_heads', norm_eps='layer_norm_eps', hidden_act='hidden_act')
        facts = {name: getattr(model.config, theirs, None) for name, theirs in names.items()}
    return found | {name: value for name, value in facts.items() if value is not None}


def check_inner(config: Mapping[str, Any], state: Mapping[str, Tensor], start: str) -> None:
    """Compare names and shapes of the model in a `MaskedBackbone` with a file, before memory is taken for any of it.

    Args:
        config: Config of the MaskedBackbone, from the file.
        state: Weights in the file.
        start: What stands before the names of the MaskedBackbone in the file.

    Raises:
        ValueError: The config is of another model than the weights, or `build_inner` refuses it.
    """
    own = _on_meta(config, state).state_dict()
    theirs = {name: value for name, value in state.items() if name.startswith(f'{start}model.')}
    check_fits({f'{start}model.{name}': value for name, value in own.items()}, theirs)


def _on_meta(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The model in a `MaskedBackbone` of a file, without memory for its weights."""
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
            return build_inner(config.get('model') or {}, config.get('in_channels', 3)).model
    finally:
        hook.remove()
