"""Epoch-based training that can resume in the middle of an epoch."""

from mmengine.runner import EpochBasedTrainLoop

from simmim_plugin.datasets.sampling import NumberedSampler
from simmim_plugin.registry import LOOPS


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """MMEngine's `EpochBasedTrainLoop`; resumed within an epoch, it continues with the next batch of that epoch.

    Needs `IterationSeedHook`, whose sampler skips the batches trained on without reading them. The arguments are
    MMEngine's.

    Raises:
        ValueError: The iteration of the checkpoint is not in its epoch: the data or the batch have changed.
    """

    def run_epoch(self) -> None:
        """Train on the batches of an epoch, after a resume on the remaining ones."""
        batches = len(self.dataloader)
        done = self._iter - self._epoch * batches
        if not 0 <= done <= batches:
            raise ValueError(
                f'the checkpoint is at iteration {self._iter} in epoch {self._epoch + 1}, but the data now give '
                f'{batches} iterations per epoch: another number of images, ranks or images per batch. Resume with '
                'those of the first run, or start a new training from the weights: --cfg-options load_from=CHECKPOINT'
            )
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if done:
            sampler = self.dataloader.batch_sampler.sampler
            if not isinstance(sampler, NumberedSampler):
                raise ValueError(
                    f'the checkpoint is from the middle of epoch {self._epoch + 1}; to resume there, add '
                    "dict(type='IterationSeedHook') to custom_hooks"
                )
            sampler.skip_batches(done)
        for idx, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
