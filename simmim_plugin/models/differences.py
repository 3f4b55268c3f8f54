"""What the weights of a checkpoint and a model do not share, in words."""

from collections.abc import Callable, Mapping

from torch import Tensor

NAMED = 6  # most names in a list


def differences(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], free: Callable[[str], bool] = lambda name: False
) -> str:
    """What is left over, missing or of another shape; '' if nothing is.

    Args:
        own: The model's state dict.
        state: The checkpoint's.
        free: Whether a weight, by its name, may be in one of them only.
    """
    strange = [name for name in state if name not in own and not free(name)]
    missing = [name for name in own if name not in state and not free(name)]
    return described(strange, missing, other_shapes(own, state))


def other_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Weights that are in both and differ in shape, with both shapes."""
    both = [name for name in own if name in state and state[name].shape != own[name].shape]
    return [f'{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}' for name in both]


def described(strange: list[str], missing: list[str], shapes: list[str]) -> str:
    """The weights that a checkpoint and a model do not share; '' if there are none.

    Args:
        strange: Names of those in the checkpoint alone.
        missing: Names of those in the model alone.
        shapes: Names of those of other shapes, with the shapes.
    """
    faults = (('not in the model', strange), ('not in the checkpoint', missing), ('of another shape', shapes))
    return '; '.join(f'{what}: {names_of(names)}' for what, names in faults if names)


def names_of(names: list[str]) -> str:
    """The names, or the first of many."""
    if len(names) > NAMED:
        return f'{", ".join(names[: NAMED - 1])}, ... and {len(names) - NAMED + 1} more'
    return ', '.join(names) or 'none'
