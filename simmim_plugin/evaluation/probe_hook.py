"""Probes during pretraining: how good the features are for labelled images, while the model learns without labels."""

import time
from collections.abc import Sequence

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
from simmim_plugin.evaluation.probes import TEMPERATURE, K, LabelledFolder, run_probes
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import flag, number, whole
from simmim_plugin.utils.configs import training_data
from simmim_plugin.utils.distributed import whole_model
from simmim_plugin.utils.runner_protocol import TrainingRunner


@HOOKS.register_module()
class ProbeHook(Hook):
    """Linear probe and k-NN on a labelled folder, every `interval` epochs and at the end, to log and visualiser.

    The model is the one in training, nothing masked, and is left as it was; nothing of the labels reaches it. The
    processes of a distributed run share the images.

    Args:
        data_root: Folder with train/ and val/, each with a folder per class.
        interval: Epochs between two probes.
        blocks: Numbers of blocks, from 1, whose features are judged (the mean of the patch tokens); None: the last.
            The published linear probe of ViT-B takes block 8 of 12.
        linear: Run the linear probe, too; it takes longer than k-NN.
        k: Neighbours of k-NN.
        temperature: Of k-NN's votes.
        fraction: Share of the training images with a label.
        workers: Processes that read images, per process of the run.

    Raises:
        ValueError: An argument is out of range, or `data_root` is no such folder.
    """

    def __init__(
        self,
        data_root: str,
        interval: int = 10,
        blocks: int | Sequence[int] | None = None,
        linear: bool = True,
        k: int = K,
        temperature: float = TEMPERATURE,
        fraction: float = 1.0,
        workers: int = 2,
    ) -> None:
        self.interval = whole('ProbeHook.interval', interval, 1)
        self.blocks = blocks
        self.linear = flag('ProbeHook.linear', linear)
        self.k = whole('ProbeHook.k', k, 1, hint='e.g. 20')
        self.temperature = number('ProbeHook.temperature', temperature, 0, hint='e.g. 0.07', ends='()')
        self.workers = whole('ProbeHook.workers', workers, 0)
        self.folder = LabelledFolder(data_root, fraction)

    def before_train(self, runner: TrainingRunner) -> None:
        """Check that the model has such blocks, before anything is trained."""
        self._extractor(runner)

    def after_train_epoch(self, runner: TrainingRunner) -> None:
        """Every `interval` epochs and after the last."""
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self.probe(runner)

    def probe(self, runner: TrainingRunner) -> None:
        """Judge the features as they are now."""
        start = time.monotonic()
        linear = None if self.linear else ()
        extractor = self._extractor(runner)
        scores = run_probes(extractor, self.folder, self.k, self.temperature, self.workers, linear=linear)
        if not is_main_process():
            return
        told = ', '.join(
            f'{name} {score.top1:.1f} % (balanced {score.balanced:.1f} %)' for name, score in scores.items()
        )
        seconds = time.monotonic() - start
        runner.logger.info(f'Probes, epoch {runner.epoch + 1}: {told}; {seconds:.0f} s')
        flat = {f'probe/{name}': score.top1 for name, score in scores.items()}
        flat |= {f'probe/{name}_balanced': score.balanced for name, score in scores.items()}
        runner.visualizer.add_scalars(flat, runner.epoch + 1)

    def _extractor(self, runner: TrainingRunner) -> FeatureExtractor:
        model = whole_model(runner)
        pipeline = training_data(runner.cfg).get('pipeline', ())
        return FeatureExtractor.from_model(model, blocks=self.blocks, pipeline=pipeline)
