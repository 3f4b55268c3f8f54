"""Seed every iteration from its number, so that a resumed training draws what an uninterrupted one would."""

from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader

from simmim_plugin.datasets.sampling import number_samples
from simmim_plugin.engine.runners.mmengine_internals import has_seed_per_rank
from simmim_plugin.models.simmim import SimMIM
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.distributed import bare_model
from simmim_plugin.utils.random_state import seed_everything
from simmim_plugin.utils.runner_protocol import TrainingRunner

STEP = 1  # second number of an iteration's seed; a sample's is 0
HELD_OUT_SEED = 0  # the same for every run, so that their held-out losses can be compared


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed every iteration, and number every sample, from the seed of the run.

    What the model draws (drop path) depends on seed, iteration and rank; what `ImageFolder`'s pipeline draws (crops,
    masks) on the seed and the number of the sample. So no random state needs to be saved, and the samples are the same
    for any number of workers and, at a given total batch, of ranks. The order of the samples also follows the seed,
    unless the sampler's config has its own. In the validation of SimMIM, an image has the same crop and mask each time.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: TrainingRunner) -> None:
        """Number the samples; the workers are not started yet."""
        self.seed = runner.seed - (get_rank() if has_seed_per_rank(runner) else 0)
        loader = runner.train_dataloader
        sampler = number_samples(loader, self.seed)
        data = runner.cfg.get('train_dataloader')  # holds built objects if the runner was made in Python
        given = (data.get('sampler') or {}).get('seed') if isinstance(data, Mapping) else None
        if hasattr(sampler.sampler, 'seed') and given is None:
            sampler.sampler.seed = self.seed

    def before_train_epoch(self, runner: TrainingRunner) -> None:
        """Set the first iteration of the epoch."""
        number_samples(runner.train_dataloader).next_iteration = first_iteration(runner)

    def before_val_epoch(self, runner: TrainingRunner) -> None:
        """Number the held-out samples from 0."""
        if isinstance(bare_model(runner), SimMIM):
            number_samples(runner.val_loop.dataloader, HELD_OUT_SEED).next_iteration = 0

    def before_train_iter(self, runner: TrainingRunner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the iteration."""
        seed_everything(self.seed, STEP, runner.iter, get_rank())


def first_iteration(runner: TrainingRunner) -> int:
    """Iteration of the next batch of the data loader."""
    loop, loader = runner.train_loop, runner.train_dataloader
    # A resumed iteration-based loop redraws and drops the batches trained on, unless MMEngine finds a sampler that can
    # skip them; it only looks into plain batch samplers.
    replays = isinstance(loop, IterBasedTrainLoop) and not (
        _can_skip(loader) or getattr(loop, 'fast_forward_on_resume', False)
    )
    return 0 if replays else runner.iter


def _can_skip(loader: DataLoader[Any]) -> bool:
    batches: Any = loader.batch_sampler
    inside = type(batches) is BatchSampler and hasattr(batches.sampler, 'skip')
    return inside or hasattr(loader.sampler, 'skip')
