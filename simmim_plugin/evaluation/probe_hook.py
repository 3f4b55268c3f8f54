"""Probe the features on labelled images during pretraining."""

import time
from collections.abc import Sequence

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from simmim_plugin.evaluation.feature_extractor import FeatureExtractor
from simmim_plugin.evaluation.probes import TEMPERATURE, K, LabelledFolder, run_probes
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import flag, number, whole
from simmim_plugin.utils.configs import training_data
from simmim_plugin.utils.distributed import averaged, saved_model
from simmim_plugin.utils.runner_protocol import TrainingRunner


@HOOKS.register_module()
class ProbeHook(Hook):
    """Linear probe and k-NN on a labelled folder, every `interval` epochs and at the end, logged and visualised.

    The probes take the features of unmasked images, with `EMAHook` those of the averaged weights. The model's modes and
    weights are not changed, and the labels do not influence it. The ranks of a distributed run share the images.

    Args:
        data_root: Folder with train/ and val/, each with a folder per class.
        interval: Epochs between probes.
        blocks: Numbers of blocks, from 1, whose features are evaluated (mean of the patch tokens); None: the last.
            The published linear probe of ViT-B takes block 8 of 12.
        linear: Also run the linear probe, which takes longer than k-NN.
        k: Number of neighbours of k-NN.
        temperature: Temperature of k-NN's votes.
        fraction: Fraction of the training images whose labels are used.
        workers: Data loader workers per rank.

    Raises:
        ValueError: An argument is out of range, or `data_root` has no such folders.
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
        if blocks is not None:
            for block in blocks if isinstance(blocks, list | tuple) else [blocks]:
                whole('ProbeHook.blocks', block, 1, hint='numbers of blocks, or None for the last')
        self.blocks = blocks
        self.linear = flag('ProbeHook.linear', linear)
        self.k = whole('ProbeHook.k', k, 1, hint='e.g. 20')
        self.temperature = number('ProbeHook.temperature', temperature, 0, hint='e.g. 0.07', ends='()')
        self.workers = whole('ProbeHook.workers', workers, 0)
        self.folder = LabelledFolder(data_root, fraction)

    def before_train(self, runner: TrainingRunner) -> None:
        """Check that the model has these blocks."""
        self._extractor(runner)

    def after_train_epoch(self, runner: TrainingRunner) -> None:
        """Probe every `interval` epochs and after the last."""
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self.probe(runner)

    def probe(self, runner: TrainingRunner) -> None:
        """Evaluate the current features and log the scores."""
        start = time.monotonic()
        linear = None if self.linear else ()
        extractor = self._extractor(runner)
        scores = run_probes(extractor, self.folder, self.k, self.temperature, self.workers, linear=linear)
        if not is_main_process():
            return
        listed = ', '.join(
            f'{name} {score.top1:.1f} % (balanced {score.balanced:.1f} %)' for name, score in scores.items()
        )
        seconds = time.monotonic() - start
        runner.logger.info(f'Probes, epoch {runner.epoch + 1}{averaged(runner)}: {listed}; {seconds:.0f} s')
        flat = {f'probe/{name}': score.top1 for name, score in scores.items()}
        flat |= {f'probe/{name}_balanced': score.balanced for name, score in scores.items()}
        runner.visualizer.add_scalars(flat, runner.epoch + 1)

    def _extractor(self, runner: TrainingRunner) -> FeatureExtractor:
        model = saved_model(runner)
        pipeline = training_data(runner.cfg).get('pipeline', ())
        return FeatureExtractor.from_model(model, blocks=self.blocks, pipeline=pipeline)
