"""Learning rates of a schedule."""

from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope


def rates(schedulers: list[dict], wrapper: OptimWrapper, length: int, epochs: int) -> list[list[float]]:
    """Rates of all groups by iteration, with schedulers built and stepped as MMEngine's runner does."""
    init_default_scope('simmim_plugin')
    built = [
        PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=wrapper, epoch_length=length))
        for scheduler in schedulers
    ]
    seen = []
    for iteration in range(length * epochs):
        seen.append([group['lr'] for group in wrapper.optimizer.param_groups])
        for scheduler in built:
            if not scheduler.by_epoch or (iteration + 1) % length == 0:
                scheduler.step()
    return seen
