"""Shared by the tests: reference numbers, tiny models, small folders of images, the number of threads."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from simmim_plugin import SimMIM

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / 'data'
# The size that the reference numbers were computed at (tests/data/README.md).
TINY = dict(
    type='simmim_plugin.SimMIMViT',
    arch=dict(embed_dims=48, num_layers=3, num_heads=4, feedforward_channels=192),
    img_size=64,
    patch_size=16,
)

torch.set_num_threads(int((os.environ.get('OMP_NUM_THREADS') or '2').split(',')[0]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that of several processes none is left with them at the end."""
    items.sort(key=lambda item: 'test_tutorials' not in item.nodeid)


@pytest.fixture(autouse=True)
def no_scope_left_behind() -> Iterator[None]:
    """What a test says of MMEngine's default scope (also by making a runner) ends with it."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def pretrain_reference() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / 'simmim_vit_pretrain.npz'))


@pytest.fixture(scope='session')
def finetune_reference() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / 'simmim_vit_finetune.npz'))


def our_name(name: str) -> str:
    """The reference's name of a pretraining parameter -> ours."""
    return name.replace('encoder.', 'backbone.').replace('decoder.0', 'head.decoder')


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


def assert_close(actual: torch.Tensor, expected: np.ndarray | float, tolerance: float = 1e-5) -> None:
    """Largest difference, relative to the largest value, at most `tolerance`."""
    expected = torch.as_tensor(np.asarray(expected)).double()
    actual = actual.detach().double().reshape(expected.shape)
    scale = expected.abs().max().clamp_min(1e-12)
    assert ((actual - expected).abs().max() / scale).item() <= tolerance


def command_of(pid: str) -> str:
    """Command line of a process; empty if there is none."""
    path = Path(f'/proc/{pid}/cmdline')
    return path.read_text() if path.is_file() else ''
