"""Files whose tensors or configs are not those of a model: one line that says what, before anything is changed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers.models import TINY
from simmim_plugin import SimMIM, SimMIMViT
from simmim_plugin.checkpoints.start import read_start

pytestmark = pytest.mark.core
ARGUMENTS = {name: value for name, value in TINY.items() if name != 'type'}
WEIGHT = 'backbone.blocks.1.mlp.fc1.weight'
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    'quantised': (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), r'a quantised tensor \(torch.qint8\)'),
    'meta': (lambda x: x.to('meta'), "a tensor on the device 'meta', without values"),
    'sparse': (Tensor.to_sparse, r'a sparse tensor \(torch.sparse_coo\)'),
    'CSR': (Tensor.to_sparse_csr, r'a sparse tensor \(torch.sparse_csr\)'),
    'nested': (lambda x: torch.nested.as_nested_tensor([x[0], x[1]]), 'a nested tensor'),
    'complex': (lambda x: x.to(torch.complex64), 'of torch.complex64'),
    'bool': (lambda x: x > 0, 'of torch.bool'),
    'int8': (lambda x: x.to(torch.int8), 'of torch.int8'),
}


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(SimMIM(backbone=TINY).state_dict())


@pytest.mark.parametrize('kind', KINDS)
def test_weights_are_dense_floating_point_tensors(kind, state, tmp_path):
    change, what = KINDS[kind]
    path = tmp_path / 'strange.pth'
    torch.save({**state, WEIGHT: change(state[WEIGHT])}, path)
    model = SimMIMViT(**{**ARGUMENTS, 'init_cfg': dict(type='Pretrained', checkpoint=str(path))})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for take in (lambda: read_start(str(path)), model.init_weights):
        with pytest.raises(ValueError, match=rf"strange\.pth': backbone\.blocks\.1\.mlp\.fc1\.weight is {what}; the w"):
            take()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
