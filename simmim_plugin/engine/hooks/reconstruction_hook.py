"""Draw reconstructions of fixed images, and measure the loss on them, during pretraining."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS as ROOT_DATASETS
from PIL import Image
from torch import Tensor

from simmim_plugin.models.losses import masked_loss, visible_mean
from simmim_plugin.models.masks import cell_mask, masks_of, pixel_mask
from simmim_plugin.registry import HOOKS
from simmim_plugin.utils.arguments import flag, parts, whole
from simmim_plugin.utils.distributed import averaged, bare_model, saved_model
from simmim_plugin.utils.random_state import LARGEST_SEED, fixed_seed
from simmim_plugin.utils.runner_protocol import TrainingRunner
from simmim_plugin.visualization.sheets import reconstruction_sheet
from simmim_plugin.visualization.target_maps import drawn

FIRST_LOSS = 'fixed_loss_at_start'


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draw the reconstruction of fixed images with fixed masks, and measure the loss on them.

    Before training, every `interval` epochs (or iterations) and at the end, it writes a picture to `out_dir` and the
    visualiser's backends, and logs the masked-pixel loss together with that of predicting each image's visible mean;
    of another target than pixels, those of its cells or tokens.
    The loss is the criterion's mean over what is masked, whatever scope and further terms the training's loss has.
    A local and a global mask have separate losses, and separate colours in the picture.
    With `EMAHook` the averaged weights are shown, as checkpoints hold them. The run's random state is left unchanged.

    Args:
        interval: Epochs, or iterations if not `by_epoch`, between two pictures.
        by_epoch: Count epochs rather than iterations.
        num_images: Images in the picture, drawn at random.
        num_measured: Images for the loss; at least `num_images`.
        dataset: Config of the data, with masks in its pipeline. None: the training data.
        out_dir: Folder of the pictures; None: `reconstructions` in the work dir.
        seed: Seed of the crops and masks.

    Raises:
        ValueError: An argument is out of range, or the images have no masks.
    """

    priority = 'LOWEST'  # after the checkpoint is written, which the summary names
    can_show = True

    def __init__(
        self,
        interval: int = 10,
        by_epoch: bool = True,
        num_images: int = 8,
        num_measured: int = 64,
        dataset: dict[str, Any] | None = None,
        out_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        self.interval = whole('ReconstructionHook.interval', interval, 1)
        self.by_epoch = flag('ReconstructionHook.by_epoch', by_epoch)
        self.num_images = whole('ReconstructionHook.num_images', num_images, 1)
        self.num_measured = max(num_images, whole('ReconstructionHook.num_measured', num_measured, 1))
        self.dataset = parts('ReconstructionHook.dataset', dataset)
        if out_dir is not None and (not isinstance(out_dir, str) or not out_dir):
            raise ValueError(f'ReconstructionHook.out_dir={out_dir!r} must be the path of a folder, or None')
        self.out_dir = out_dir
        self.seed = whole('ReconstructionHook.seed', seed, 0, LARGEST_SEED)

    def before_train(self, runner: TrainingRunner) -> None:
        """Draw the fixed images, and show the initial model. A model that cannot be shown is left alone."""
        self.can_show = hasattr(bare_model(runner), 'reconstruct')
        if not self.can_show:  # such as the stand-in of MMPretrain's vis_scheduler
            name = type(bare_model(runner)).__name__
            runner.logger.warning(f'ReconstructionHook: {name} has no reconstruct(), so there are no pictures')
            return
        if is_main_process():
            self._draw(runner)
        self.show(runner, runner.epoch if self.by_epoch else runner.iter)

    def _draw(self, runner: TrainingRunner) -> None:
        dataset: Any = runner.train_dataloader.dataset if self.dataset is None else ROOT_DATASETS.build(self.dataset)
        count = min(self.num_measured, max(len(dataset), self.num_images))
        with fixed_seed(self.seed):
            samples = [dataset[int(i)] for i in np.resize(np.random.permutation(len(dataset)), count)]
        self.masks = masks_of(sample.get('data_samples', sample) for sample in samples)  # or of MMPretrain's PackInputs
        if 'mask' not in self.masks:
            raise ValueError('ReconstructionHook needs masks; add SimMIMMaskGenerator to the pipeline of the data')
        self.batch: dict[str, Any] = {'inputs': torch.stack([sample['inputs'] for sample in samples])}
        if 'data_samples' in samples[0]:
            self.batch['data_samples'] = [sample['data_samples'] for sample in samples]

    def after_train_epoch(self, runner: TrainingRunner) -> None:
        """Every `interval` epochs and after the last."""
        if self.by_epoch and (self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner)):
            self.show(runner, runner.epoch + 1)

    def after_train_iter(
        self, runner: TrainingRunner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Every `interval` iterations and after the last."""
        if not self.by_epoch and (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            self.show(runner, runner.iter + 1)

    def after_train(self, runner: TrainingRunner) -> None:
        """Log a summary of the run."""
        if not is_main_process() or not self.can_show:
            return
        checkpoint = runner.message_hub.get_info('last_ckpt', 'none written')
        first = runner.message_hub.get_info(FIRST_LOSS)
        runner.logger.info(
            f'Done. Masked-{self.unit} loss on {len(self.masks["mask"])} fixed images: {first:.4f} at the start -> '
            f'{self.last_loss:.4f} at the end\n'
            f"  predicting each image's visible mean: {self.mean_loss:.4f}\n"
            f'  checkpoint: {checkpoint}\n'
            f'  picture:    {self.last_picture}'
        )

    def show(self, runner: TrainingRunner, step: int) -> None:
        """Measure, log and draw, on rank 0; all ranks must call it."""
        if not self.can_show:
            return
        model = saved_model(runner)
        if not is_main_process():
            return
        inputs, predicted, truth = self._predict(model)
        target = model.head.target
        self.unit = target.unit
        masks = {name: pixel_mask(mask, inputs.shape[2:]).to(inputs.device) for name, mask in self.masks.items()}
        pixels = masks['mask']
        losses = {name: masked_loss(model, predicted, inputs, mask, truth) for name, mask in masks.items()}
        self.last_loss = losses['mask']
        mean = visible_mean(truth, cell_mask(pixels, truth.shape[2:]))
        self.mean_loss = masked_loss(model, mean, inputs, pixels, truth)
        parts = (masks['mask_local'], masks['mask_global']) if 'mask_local' in masks else None
        split = f', local {losses["mask_local"]:.4f}, global {losses["mask_global"]:.4f}' if parts else ''
        hub = runner.message_hub  # saved in checkpoints: a resumed run still knows its initial loss
        if FIRST_LOSS not in hub.runtime_info:
            hub.update_info(FIRST_LOSS, self.last_loss)
        runner.logger.info(
            f'Fixed images, {"epoch" if self.by_epoch else "iteration"} {step}{averaged(runner)}: '
            f'masked-{self.unit} loss {self.last_loss:.4f} (predicting the visible mean: {self.mean_loss:.4f}){split}'
        )
        shown = torch.arange(0, len(pixels), max(1, len(pixels) // self.num_images))[: self.num_images]
        denormalize = partial(_denormalized, model.data_preprocessor)
        maps = drawn(target, truth[shown], predicted[shown], inputs.shape[2:])
        sheet = reconstruction_sheet(
            denormalize(inputs[shown]),
            denormalize(predicted[shown]) if maps is None else inputs[shown],
            pixels[shown],
            parts=None if parts is None else (parts[0][shown], parts[1][shown]),
            maps=maps,
        )
        folder = Path(self.out_dir or Path(runner.work_dir) / 'reconstructions')
        folder.mkdir(parents=True, exist_ok=True)
        self.last_picture = folder / f'{"epoch" if self.by_epoch else "iter"}_{step}.png'
        Image.fromarray(sheet).save(self.last_picture)
        runner.visualizer.add_image('reconstruction', sheet, step)
        scalars = {f'fixed/{name.replace("mask", "loss")}': loss for name, loss in losses.items()}
        runner.visualizer.add_scalars({**scalars, 'fixed/loss_visible_mean': self.mean_loss}, step)

    @torch.no_grad()
    def _predict(self, model: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, predictions and truth of all images, a few at a time."""
        was_training = model.training
        model.eval()
        parts = []
        for start in range(0, len(self.masks['mask']), self.num_images):
            part = slice(start, start + self.num_images)
            inputs = model.data_preprocessor({key: values[part] for key, values in self.batch.items()})['inputs']
            predicted = model.reconstruct(inputs, self.masks['mask'][part].to(inputs.device))
            parts.append((inputs, predicted, model.head.target(inputs)))
        model.train(was_training)
        inputs, predicted, truth = (torch.cat(tensors) for tensors in zip(*parts))
        return inputs, predicted, truth


def _denormalized(preprocessor: Any, images: Tensor) -> Tensor:
    """(B, C, H, W) in the units of the stored values, also by MMEngine's and MMPretrain's preprocessors."""
    if hasattr(preprocessor, 'denormalize'):
        return preprocessor.denormalize(images)
    return images * getattr(preprocessor, 'std', 1) + getattr(preprocessor, 'mean', 0)  # without them, as stored
