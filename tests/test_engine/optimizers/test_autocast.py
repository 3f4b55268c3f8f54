"""AutocastOptimWrapper: which parts compute in bfloat16, with and without a wrapper around the model."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from torch import nn

from simmim_plugin.engine.optimizers.autocast_optim_wrapper import AutocastOptimWrapper, autocast
from simmim_plugin.utils.distributed import leave_process_group


class TwoParts(nn.Module):
    """A backbone that returns a tuple, and a head; both record the dtype they computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = _Tuple(), nn.Linear(4, 2)
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (features,) = self.backbone(x)
        outputs = self.head(features)
        self.seen = [self.backbone.seen, features.dtype, outputs.dtype]
        return outputs.float().sum()


class _Tuple(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 4)

    def forward(self, x):
        outputs = super().forward(x)
        self.seen = outputs.dtype
        return (outputs,)


HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ('settings', 'seen'),
    [
        (dict(on_cpu=True), [HALF, HALF, HALF]),
        (dict(on_cpu=True, parts=('backbone',)), [HALF, FULL, FULL]),
        (dict(on_cpu=True, parts=('head',)), [FULL, FULL, FULL]),
        (dict(parts=('backbone',)), [FULL, FULL, FULL]),
        (dict(), [FULL, FULL, FULL]),
    ],
)
def test_parts_compute_in_bfloat16_and_return_float32(settings, seen):
    model = TwoParts()
    wrapper = AutocastOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **settings)
    with wrapper.optim_context(model):
        loss = model(torch.randn(5, 3))
    wrapper.update_params(loss)
    assert model.seen == seen and all(p.grad is None or p.grad.dtype == FULL for p in model.parameters())
    model(torch.randn(5, 3))
    assert model.seen == [FULL, FULL, FULL]  # the forward methods are restored


@pytest.mark.parametrize(('avx512', 'amx', 'seen'), [(False, False, FULL), (True, False, HALF), (False, True, HALF)])
def test_auto_is_bfloat16_where_the_cpu_supports_it(avx512, amx, seen, monkeypatch):
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: avx512)
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
    model = TwoParts()
    wrapper = AutocastOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), on_cpu='auto')
    with wrapper.optim_context(model):
        model(torch.ones(2, 3))
    assert model.seen == [seen] * 3
    for argument, value, words in (
        ('on_cpu', 'maybe', "on_cpu='maybe' is unknown; choose one of True, False, 'auto'"),
        ('parts', 'backbone', r"parts='backbone' must be a list of names; e.g. \['backbone', 'neck'\]"),
        ('skip_nonfinite', 1, 'skip_nonfinite=1 must be True or False'),
    ):
        with pytest.raises(ValueError, match=f'^AutocastOptimWrapper.{words}$'):
            AutocastOptimWrapper(optimizer=wrapper.optimizer, **{argument: value})


def test_a_patched_forward_is_kept():
    model, calls = TwoParts(), []
    original = model.backbone.forward
    model.backbone.forward = lambda x: (
        calls.append(x.dtype) or original(x)
    )  # as MMEngine's activation checkpointing does
    for _ in range(2):
        with autocast(model, ('backbone', 'backbone')):
            model(torch.randn(5, 3))
    assert len(calls) == 2 and model.seen == [HALF, FULL, FULL]
    model(torch.randn(5, 3))
    assert len(calls) == 3 and model.seen == [FULL, FULL, FULL]


def test_other_outputs_than_bfloat16_are_unchanged():
    class Counts(nn.Linear):
        def forward(self, x):
            return {'y': super().forward(x), 'n': torch.tensor([3]), 'exact': x.double()}

    model = nn.ModuleDict({'part': Counts(3, 4)})
    with autocast(model, ('part',)):
        outputs = model['part'](torch.randn(2, 3))
    assert {name: x.dtype for name, x in outputs.items()} == dict(y=FULL, n=torch.int64, exact=torch.float64)


def test_parts_inside_a_distributed_model(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = MMDistributedDataParallel(TwoParts())
        wrapper = AutocastOptimWrapper(
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1), on_cpu=True, parts=('backbone',)
        )
        with wrapper.optim_context(model):
            wrapper.update_params(model(torch.randn(5, 3)))
        assert model.module.seen == [HALF, FULL, FULL]
    finally:
        # Gloo's threads may still be releasing a reduction, which needs the GIL. Dropping the last reference to the
        # group waits for them with the GIL held: a deadlock.
        leave_process_group()


def test_a_part_that_is_not_there_is_named():
    model = TwoParts()
    wrapper = AutocastOptimWrapper(
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1), on_cpu=True, parts=('backbone', 'neck')
    )
    with (
        pytest.raises(ValueError, match="the model has no 'neck'; choose from backbone, head"),
        wrapper.optim_context(model),
    ):
        pass
    assert 'forward' not in vars(model.backbone)
