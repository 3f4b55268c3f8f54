"""Training by epochs that can go on in the middle of one."""

from mmengine.runner import EpochBasedTrainLoop

from simmim_plugin.datasets.sampling import NumberedSampler
from simmim_plugin.registry import LOOPS


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """MMEngine's `EpochBasedTrainLoop`; resumed within an epoch, it goes on with the epoch's next batch.

    Needs `IterationSeedHook`, whose sampler can leave out the batches that were trained on without reading them.
    Arguments are MMEngine's.

    Raises:
        ValueError: The iteration to go on from is not in the epoch to go on from: other data, or another batch.
    """

    def run_epoch(self) -> None:
        """Train on the batches of an epoch, the first time on those that are left."""
        batches = len(self.dataloader)
        done = self._iter - self._epoch * batches
        if not 0 <= done <= batches:
            raise ValueError(
                f'the checkpoint is at iteration {self._iter} in epoch {self._epoch + 1}, but the data now make '
                f'{batches} iterations per epoch: another number of images, processes or images per batch. Resume with '
                'those of the first run, or start anew from the weights: --cfg-options load_from=CHECKPOINT'
            )
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if done:
            sampler = self.dataloader.batch_sampler.sampler
            if not isinstance(sampler, NumberedSampler):
                raise ValueError(
                    f'the checkpoint is from the middle of epoch {self._epoch + 1}; to go on from there, add '
                    "dict(type='IterationSeedHook') to custom_hooks"
                )
            sampler.skip_batches(done)
        for idx, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
