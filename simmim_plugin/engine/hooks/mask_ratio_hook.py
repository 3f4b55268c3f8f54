"""Change mask ratios during training."""

import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log

from simmim_plugin.datasets.sampling import number_samples
from simmim_plugin.datasets.transforms.masking import RATIOS, SCHEDULES, Ramp, SimMIMMaskGenerator
from simmim_plugin.engine.hooks.iteration_seed_hook import first_iteration
from simmim_plugin.engine.runners.numbered_data import numbered_pipelines, transforms_of
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import choice, number, whole
from simmim_plugin.utils.distributed import bare_model
from simmim_plugin.utils.runner_protocol import TrainingRunner


@HOOKS.register_module()
class MaskRatioHook(Hook):
    """Ramp a ratio of `SimMIMMaskGenerator` over the iterations.

    The ratio depends on the iteration only, which every sample's index carries to the worker processes: it is the same
    with any number of workers, persistent or not, and after a resume. It is logged as `mask_ratio`, `local_ratio` or
    `global_ratio`. Pictures and losses of fixed images keep the generator's own ratio.

    Args:
        start: Ratio up to iteration `begin`.
        end: Ratio from iteration `until` on. None: the generator's own.
        argument: The ratio to ramp: `mask_ratio`, `local.ratio` or `global_.ratio`.
        begin: First iteration of the ramp.
        until: Last iteration of the ramp. None: that of the training.
        schedule: 'linear' or 'cosine' (slow at both ends).

    Raises:
        ValueError: An argument is out of range, or the data has no such generator or hides the indices from it.
    """

    def __init__(
        self,
        start: float,
        end: float | None = None,
        argument: str = 'mask_ratio',
        begin: int = 0,
        until: int | None = None,
        schedule: str = 'linear',
    ) -> None:
        number('MaskRatioHook.start', start, 0, 1)
        if end is not None:
            number('MaskRatioHook.end', end, 0, 1)
        choice('MaskRatioHook.argument', argument, RATIOS)
        whole('MaskRatioHook.begin', begin, 0)
        if until is not None:
            whole('MaskRatioHook.until', until, begin + 1, hint='the ramp ends after it begins')
        choice('MaskRatioHook.schedule', schedule, SCHEDULES)
        self.start, self.end, self.argument = start, end, argument
        self.begin, self.until, self.schedule = begin, until, schedule

    def before_train(self, runner: TrainingRunner) -> None:
        """Pass the ramp to the generator, and number the samples, before the workers start."""
        until = runner.max_iters if self.until is None else self.until
        if until <= self.begin:
            raise ValueError(f'begin={self.begin} of MaskRatioHook must be before the last iteration, {until}')
        if until > runner.max_iters:
            print_log(
                f'MaskRatioHook: until={until} is beyond the last iteration, {runner.max_iters}; the ramp of '
                f'{self.argument} will not reach its end',
                'current',
                logging.WARNING,
            )
        generators = transforms_of(numbered_pipelines(runner, type(self).__name__), SimMIMMaskGenerator)
        parts = {part.name: part for generator in generators for part in generator.parts}
        if self.argument not in parts:
            there = ', '.join(map(repr, parts)) or 'none: add SimMIMMaskGenerator to the pipeline'
            raise ValueError(
                f'argument={self.argument!r} of MaskRatioHook: the masks of the training data have {there}'
            )
        end = parts[self.argument].ratio if self.end is None else self.end
        self.ramp = Ramp(self.start, end, self.begin, until, self.schedule)
        model = bare_model(runner)
        for generator in generators:
            generator.ramps[self.argument] = self.ramp
            if hasattr(model, 'backbone') and hasattr(model.backbone, 'grid'):
                for iteration in (self.begin, until):  # fail now for a ratio that would mask everything at the end
                    generator.ratios(model.backbone.grid, iteration)

    def before_train_epoch(self, runner: TrainingRunner) -> None:
        """Set the first iteration of the epoch."""
        number_samples(runner.train_dataloader).next_iteration = first_iteration(runner)

    def before_train_iter(self, runner: TrainingRunner, batch_idx: int, data_batch: Any = None) -> None:
        """Log the ratio."""
        name = 'mask_ratio' if self.argument == 'mask_ratio' else self.argument.replace('.', '_').replace('__', '_')
        runner.message_hub.update_scalar(f'train/{name}', self.ramp(runner.iter))
