"""Random numbers that depend on the iteration alone, so that a resumed training draws what an unbroken one would."""

from collections.abc import Mapping
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader

from simmim_plugin.datasets.sampling import number_samples
from simmim_plugin.engine.runners.mmengine_internals import has_seed_per_rank
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.random_state import seed_everything
from simmim_plugin.utils.runner_protocol import TrainingRunner

STEP = 1  # second word of the seeds of iterations; samples have 0


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed every iteration, and number every sample, by the seed of the run.

    What the model draws (drop path) depends on seed, iteration and rank; what `ImageFolder`'s pipeline draws (crops,
    masks) on the seed and the number of the sample. So nothing of the random state needs to be saved, and neither the
    number of workers nor, for a given total batch, that of processes changes what is drawn for the samples. The
    order of the samples follows the seed, too, unless the sampler's config has a seed of its own.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: TrainingRunner) -> None:
        """Number the samples; the workers are not started yet."""
        self.seed = runner.seed - (get_rank() if has_seed_per_rank(runner) else 0)
        loader = runner.train_dataloader
        sampler = number_samples(loader, self.seed)
        data = runner.cfg.get('train_dataloader')  # built objects, where the runner was made in Python
        given = (data.get('sampler') or {}).get('seed') if isinstance(data, Mapping) else None
        if hasattr(sampler.sampler, 'seed') and given is None:
            sampler.sampler.seed = self.seed

    def before_train_epoch(self, runner: TrainingRunner) -> None:
        """Say which iteration comes first."""
        number_samples(runner.train_dataloader).next_iteration = first_iteration(runner)

    def before_train_iter(self, runner: TrainingRunner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the iteration draws."""
        seed_everything(self.seed, STEP, runner.iter, get_rank())


def first_iteration(runner: TrainingRunner) -> int:
    """Iteration of the first batch that the data loader is about to make."""
    loop, loader = runner.train_loop, runner.train_dataloader
    # A resumed iteration-based loop draws again, and drops, what was trained on, unless MMEngine finds a sampler that
    # can skip it; it looks into plain batch samplers only.
    replays = isinstance(loop, IterBasedTrainLoop) and not (
        _can_skip(loader) or getattr(loop, 'fast_forward_on_resume', False)
    )
    return 0 if replays else runner.iter


def _can_skip(loader: DataLoader[Any]) -> bool:
    batches: Any = loader.batch_sampler
    inside = type(batches) is BatchSampler and hasattr(batches.sampler, 'skip')
    return inside or hasattr(loader.sampler, 'skip')
