"""A minimal runner for MMEngine's loops."""

import math
import random
from types import SimpleNamespace

from mmengine.dataset import DefaultSampler
from mmengine.logging import MessageHub
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from simmim_plugin import ImageFolder, SimMIMMaskGenerator

SIZE, TOKENS = (72, 80), 90  # the images of `image_folder`, in patches of 8 px


class Model(nn.Module):
    """Records the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict] = []

    def train_step(self, data, optim_wrapper):
        self.batches.append(data)
        return {}


class Runner:
    """The parts of a runner that MMEngine's loops and the hooks use."""

    def __init__(self, loader, *hooks, loop=EpochBasedTrainLoop, resume_from=0, model=None, **kwargs) -> None:
        self.hooks, self.model = hooks, model or Model()
        self.visualizer, self.val_loop, self.optim_wrapper = SimpleNamespace(), None, None
        self.message_hub = MessageHub(f'ramp{random.random()}')
        self.train_loop = loop(self, loader, **kwargs)
        self.train_loop._iter = resume_from
        self.train_loop._epoch = resume_from // len(loader) if loop is EpochBasedTrainLoop else 0

    train_dataloader = property(lambda self: self.train_loop.dataloader)
    iter = property(lambda self: self.train_loop.iter)
    epoch = property(lambda self: self.train_loop.epoch)
    max_iters = property(lambda self: self.train_loop.max_iters)

    def call_hook(self, name, **kwargs):
        for hook in self.hooks:
            getattr(hook, name)(self, **kwargs)

    def train(self) -> list[dict]:
        self.train_loop.run()
        del self.train_loop  # ends the workers; the garbage collector would need ten seconds
        return self.model.batches

    def logged(self, name) -> list[float]:
        return self.message_hub.get_scalar(f'train/{name}').data[0].tolist()


def folder(path, mask_ratio=0.5, **kwargs) -> ImageFolder:
    return ImageFolder(str(path), [SimMIMMaskGenerator(mask_ratio, 8, 8, input_size=SIZE, **kwargs)])


def data_loader(dataset, sampler=DefaultSampler, workers=2, persistent=True, batch_size=2, drop_last=True):
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler(dataset, seed=0),
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        drop_last=drop_last,
    )


def ratio_at(iteration: int, start=0.1, end=0.9, begin=3, until=15) -> float:
    return start + (end - start) * min(max(iteration - begin, 0), until - begin) / (until - begin)


def counts(batch: dict, name='mask') -> list[int]:
    return batch[name].sum((1, 2)).tolist()


def expected(ratio: float, size: int = 2, units: int = TOKENS) -> list[int]:
    return [math.ceil(round(ratio * units, 6))] * size


def _simultaneous(path, masks) -> ImageFolder:
    return ImageFolder(str(path), [SimMIMMaskGenerator(model_patch_size=8, input_size=SIZE, **masks)])
