"""Keep the values of training steps on the device until all of them are read at once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SKIPPED = 'skipped'  # value of a step: 1 if the optimiser skipped it, else 0; missing in accumulating iterations


@dataclass
class Step:
    """An iteration, counted from 1, with its losses and other values, and the paths of its images, if known."""

    iteration: int
    values: dict[str, Any]
    paths: list[str]


class StepRecords:
    """The steps since the last read. `values` collects those of the next step, such as the gradient norm."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.values: dict[str, Any] = {}

    def add(self, iteration: int, batch: Any, outputs: dict[str, Any] | None) -> None:
        """Add an iteration without synchronising the device."""
        values = {name: x.detach() if isinstance(x, Tensor) else x for name, x in (outputs or {}).items()}
        self.steps.append(Step(iteration, values | self.values, paths_of(batch)))
        self.values = {}

    def read(self) -> list[Step]:
        """Return and clear the steps, tensors converted to floats; synchronises each device once."""
        steps, self.steps = self.steps, []
        tensors = [x for step in steps for x in step.values.values() if isinstance(x, Tensor)]
        floats: dict[int, float] = {}
        for device in {x.device for x in tensors}:
            there = [x for x in tensors if x.device == device]
            floats |= zip(map(id, there), torch.stack([x.reshape(()).float() for x in there]).tolist())
        for step in steps:
            step.values = {name: floats.get(id(x), x) for name, x in step.values.items()}
        return steps


def paths_of(batch: Any) -> list[str]:
    """Paths of the images of a batch in this package's or the frameworks' format, if it has them."""
    if not isinstance(batch, dict):
        return []
    paths, samples = batch.get('img_path'), batch.get('data_samples')
    if isinstance(paths, list | tuple):
        return list(paths)
    return [s.img_path for s in samples if hasattr(s, 'img_path')] if isinstance(samples, list | tuple) else []
