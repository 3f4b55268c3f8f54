"""Change the size of the images during training."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop

from simmim_plugin.datasets.sampling import number_samples
from simmim_plugin.datasets.transforms.crop import RandomResizedCrop, SizeSteps
from simmim_plugin.datasets.transforms.masking import SimMIMMaskGenerator
from simmim_plugin.engine.hooks.compile_hook import CompileHook
from simmim_plugin.engine.hooks.iteration_seed_hook import first_iteration
from simmim_plugin.engine.runners.numbered_data import numbered_pipelines, transforms_of
from simmim_plugin.models.simmim import SimMIM
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import flag, grid_of, sides, whole
from simmim_plugin.utils.distributed import saved_model
from simmim_plugin.utils.runner_protocol import TrainingRunner

MOST_COMPILED = 8  # shapes that PyTorch compiles a function for; one more ends the training


@HOOKS.register_module()
class ImageSizeHook(Hook):
    """Begin the training with small images, and enlarge them at given epochs (FastMIM-P, arXiv 2212.06593).

    Crops have the size of their iteration, which every sample's index carries to the worker processes: it is the same
    with any number of workers, and after a resume. Units of the mask keep their side in pixels, so there are more of
    them in a larger image. The model keeps its `img_size`: `SimMIMViT` interpolates bias tables or position embedding
    in each forward pass. Learning rates, which follow epochs and iterations, stay. Pictures and losses of fixed and of
    held-out images keep the size of their own crop, so that they can be compared over the whole training. A compiled
    model is compiled again at each change.

    Args:
        sizes: First epoch, counted from 0, -> side, or (height, width), in pixels; epoch 0 must be there:
            `{0: 128, 40: 160, 80: 192}`.
        by_epoch: Count epochs; else the keys are iterations.

    Raises:
        ValueError: A size does not fit the patches or the model, or would be masked as a whole, all of which is found
            before the first iteration; or the data have no such crops and masks, or hide the indices from them.
    """

    shown: tuple[int, int] | None = None  # size that the log has

    def __init__(self, sizes: Mapping[int, int | Sequence[int]], by_epoch: bool = True) -> None:
        if not isinstance(sizes, Mapping) or 0 not in sizes:
            raise ValueError(
                f'ImageSizeHook.sizes={sizes!r} must be a dict of first epochs and sizes, from epoch 0, '
                'e.g. {0: 128, 40: 160, 80: 192}'
            )
        self.sizes: dict[int, tuple[int, int]] = {}
        for first in sorted(whole(f'ImageSizeHook.sizes={sizes!r}: {key!r}', key, 0) for key in sizes):
            self.sizes[first] = sides(f'ImageSizeHook.sizes[{first}]', sizes[first])
        self.by_epoch = flag('ImageSizeHook.by_epoch', by_epoch)

    def before_train(self, runner: TrainingRunner) -> None:
        """Check all sizes, and pass them to the crops, before the workers start."""
        epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if self.by_epoch and not epochs:
            raise ValueError(
                f'ImageSizeHook.sizes={self.sizes} counts epochs, which {type(runner.train_loop).__name__} has not; '
                'give iterations, and by_epoch=False'
            )
        different = len(set(self.sizes.values()))
        if different > MOST_COMPILED and any(isinstance(hook, CompileHook) for hook in runner.hooks):
            raise ValueError(
                f'ImageSizeHook.sizes has {different} different sizes, of which --compile (CompileHook) takes '
                f'{MOST_COMPILED}; give fewer, or leave --compile out'
            )
        length = len(runner.train_dataloader) if self.by_epoch else 1
        steps = SizeSteps(tuple((first * length, size) for first, size in self.sizes.items()))
        if late := [first for first in self.sizes if first * length >= runner.max_iters]:
            end = f'max_epochs={runner.max_epochs}' if self.by_epoch else f'max_iters={runner.max_iters}'
            print_log(
                f'ImageSizeHook: sizes[{late[0]}] is beyond {end} and will not be reached', 'current', logging.WARNING
            )
        pipelines = numbered_pipelines(runner, 'ImageSizeHook')
        model = saved_model(runner)
        for transforms in pipelines:
            crops = transforms_of([transforms], RandomResizedCrop)
            masks = transforms_of([transforms], SimMIMMaskGenerator)
            if len(crops) != 1 or len(masks) != 1 or masks[0].input_size is not None:
                raise ValueError(
                    'ImageSizeHook needs one RandomResizedCrop and one SimMIMMaskGenerator without input_size, both of '
                    f'simmim_plugin, in the pipeline of the training data; it has {transforms}'
                )
            for (first, size), (iteration, _) in zip(self.sizes.items(), steps.steps):
                self._check(f'ImageSizeHook.sizes[{first}]', size, masks[0], iteration, model)
            crops[0].steps = steps
        self.steps = steps

    def _check(self, name: str, size: tuple[int, int], masks: SimMIMMaskGenerator, iteration: int, model: Any) -> None:
        grid = grid_of(name, size, masks.model_patch_size)
        try:
            masks.ratios(grid, iteration)
            if isinstance(model, SimMIM):
                _try(model, size, grid)
        except (AssertionError, RuntimeError, ValueError) as error:  # the libraries' own words for a size
            pixels = f'{size[0]} x {size[1]} px'
            raise ValueError(f'{name} of {pixels} does not fit: {error}; choose another size') from error

    def before_train_epoch(self, runner: TrainingRunner) -> None:
        """Set the first iteration of the epoch."""
        number_samples(runner.train_dataloader).next_iteration = first_iteration(runner)

    def before_train_iter(self, runner: TrainingRunner, batch_idx: int, data_batch: Any = None) -> None:
        """Log the size at the start and at each change."""
        if (size := self.steps(runner.iter)) != self.shown:
            self.shown = size
            where = f'epoch {runner.epoch + 1}' if self.by_epoch else f'iteration {runner.iter + 1}'
            print_log(f'Images of {size[0]} x {size[1]} px from {where} on', 'current')


@torch.no_grad()
def _try(model: SimMIM, size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Compute the loss of an image of zeros, half of it masked: a backbone may take some sizes only."""
    was_training, first = model.training, next(model.parameters())
    channels = getattr(model.backbone, 'in_channels', 3)
    mask = torch.zeros(1, *grid, dtype=torch.uint8, device=first.device)
    mask[:, : (grid[0] + 1) // 2] = 1
    model.eval().loss(torch.zeros(1, channels, *size, device=first.device), mask)
    model.train(was_training)
