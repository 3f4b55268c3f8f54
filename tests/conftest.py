"""Fixtures: reference numbers, a model with the reference's weights, a small folder of images."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before NumPy and PyTorch: see helpers/commands.py

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from helpers.models import TINY, our_name
from helpers.paths import DATA
from simmim_plugin import SimMIM

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS'].split(',')[0]))
# The first backward pass starts autograd's threads, one per device, and forbids it in forked processes, in which tests
# run commands. `torch.compile` and the exporters pretend that there are GPUs; before that, none gets a thread.
torch.zeros((), requires_grad=True).backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no worker starts one at the end."""
    items.sort(key=lambda item: ('test_tutorials' not in item.nodeid, 'slow' not in item.keywords))


@pytest.fixture(autouse=True)
def no_scope_left_behind() -> Iterator[None]:
    """Reset MMEngine's default scope, which tests change, e.g. by building a runner."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_pause_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine's loop by iterations waits 2 s after each epoch."""
    monkeypatch.setattr('mmengine.runner.loops.time', SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture(scope='session')
def pretrain_reference() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / 'simmim_vit_pretrain.npz'))


@pytest.fixture(scope='session')
def finetune_reference() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / 'simmim_vit_finetune.npz'))


@pytest.fixture
def reference_model(pretrain_reference: dict[str, np.ndarray]) -> SimMIM:
    """SimMIM with the reference's weights."""
    model = SimMIM(backbone=TINY)
    parameters = dict(model.named_parameters())
    state = {our_name(k[6:]): torch.from_numpy(v) for k, v in pretrain_reference.items() if k.startswith('state/')}
    # The decoder is a 1x1 convolution there and a linear layer here.
    model.load_state_dict({name: value.reshape(parameters[name].shape) for name, value in state.items()})
    return model


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Twelve JPEGs, 80 x 72 px, in two folders."""
    rng = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / 'images' / f'part{i % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        low = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(low).resize((80, 72), Image.Resampling.BICUBIC).save(folder / f'{i:02}.jpg')
    return tmp_path / 'images'
