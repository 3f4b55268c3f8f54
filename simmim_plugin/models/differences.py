"""What the weights of a checkpoint and a model do not share, in words."""

NAMED = 6  # most names in a list


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
