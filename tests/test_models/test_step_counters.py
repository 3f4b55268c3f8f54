"""What a training step costs, in counts that do not depend on the machine: graphs, breaks, waits, operators, bytes."""

from collections import Counter

import pytest
import torch
import torch._dynamo.utils
from mmengine.config import DictAction
from mmengine.hooks import EMAHook, Hook

from helpers.commands import SMALL, scalars, train
from helpers.models import TINY
from helpers.paths import ROOT
from simmim_plugin import CompileHook, SimMIM
from simmim_plugin.apis import train as api
from simmim_plugin.config import load_config
from simmim_plugin.utils.counters import OperatorCounter


class CountIterations(Hook):
    """Counts of every iteration, from what comes before the step to the last hook behind it; loading is left out."""

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self.iterations: list[Counter[str]] = []
        self.mode: OperatorCounter | None = None

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.mode = OperatorCounter()
        self.mode.__enter__()

    def end(self) -> None:
        self.mode.__exit__(None, None, None)
        self.iterations.append(self.mode.counts)
        self.mode = None


class EndOfIteration(Hook):
    priority = 'LOWEST'

    def __init__(self, counter: CountIterations) -> None:
        self.counter = counter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.counter.end()


@pytest.fixture
def runner_of(tmp_path, image_folder):
    """A runner of the tiny config; `mask` is another generator."""

    def build(*options: str, mask: dict | None = None, **switches: bool):
        settings = [f'data_root={image_folder}', *SMALL, 'default_hooks.logger.interval=3', *options]
        values = {key: DictAction._parse_iterable(value) for key, value in (x.split('=', 1) for x in settings)}
        cfg = load_config(str(ROOT / 'configs/simmim_vit-tiny_folder.py'), values)
        if mask:
            cfg.train_dataloader.dataset.pipeline[3] = dict(type='SimMIMMaskGenerator', model_patch_size=8, **mask)
        api.prepare(cfg, 'counted.py', str(tmp_path / 'work'), **switches)
        return api.build_runner(cfg)

    return build


READERS = ('item', 'tolist', 'cpu', 'numpy', '__bool__', '__float__', '__int__', '__index__')
MASKS = [None, dict(local=dict(ratio=0.5, unit=16), global_=dict(ratio=0.2, unit=32))]


@pytest.mark.parametrize('mask', MASKS, ids=['published', 'simultaneous'])
@pytest.mark.parametrize('ema', [False, True], ids=['', 'ema'])
def test_nothing_waits_for_the_device_between_log_lines(runner_of, monkeypatch, mask, ema):
    """What reads a floating-point tensor, or has a size that depends on values, would wait on a GPU."""
    runner = runner_of('train_cfg.max_epochs=2', mask=mask)
    counter = CountIterations()
    runner.register_hook(counter)
    runner.register_hook(EndOfIteration(counter))
    if ema:
        runner.register_hook(EMAHook('simmim_plugin.ForeachEMA'))
    for name in READERS:
        read = getattr(torch.Tensor, name)

        def note(self, *args, name=name, read=read):
            if self.is_floating_point() and counter.mode is not None:
                counter.mode.counts[name] += 1
            return read(self, *args)

        monkeypatch.setattr(torch.Tensor, name, note)
    runner.train()
    waits = [sum(n for name, n in counts.items() if name in (*READERS, 'nonzero', '_local_scalar_dense'))
             for counts in counter.iterations]  # fmt: skip
    first = 2 if ema else 0  # the moving average begins by reading how far it is, here and in MMEngine's code
    assert waits[:2] == [first, 0] and waits[3:5] == [0, 0]
    assert waits[2] == waits[5] == 1  # before a log line everything is read at once, for FaultHook as well


@pytest.mark.parametrize('amp', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('mask', MASKS, ids=['published', 'simultaneous'])
def test_forward_is_one_graph(runner_of, mask, amp):
    runner = runner_of('train_cfg.max_epochs=2', mask=mask, amp=amp)
    names = list(runner.model.state_dict())
    runner.register_hook(CompileHook(backend='aot_eager'))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    runner.train()
    counters = torch._dynamo.utils.counters
    assert not counters['graph_break']
    assert counters['stats']['unique_graphs'] == 1
    assert list(runner.model.state_dict()) == names


def compiled_and_eager(size, mask, **backbone):
    """Losses and gradients of one model, compiled and not."""
    torch.manual_seed(0)
    model = SimMIM({**TINY, **backbone}).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'relative_position' in name:
                parameter.normal_()
    images, results = torch.randn(len(mask), 3, *size), []
    for run in (torch.compile(model, backend='aot_eager', fullgraph=True), model):
        model.zero_grad()
        loss = run(images, mask=mask, mode='loss')['loss']
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    return results


@pytest.mark.parametrize(
    'backbone',
    [{}, dict(window_size=3), dict(window_size=3, global_blocks=(1,)), dict(with_cp=True),
     dict(use_shared_rel_pos_bias=False, use_rel_pos_bias=True)],
    ids=str,
)  # fmt: skip
def test_compiled_computes_the_same_at_every_size(backbone):
    torch._dynamo.reset()
    for size in ((64, 64), (96, 48)):
        mask = (torch.rand(2, size[0] // 16, size[1] // 16) < 0.5).to(torch.uint8)
        compiled, eager = compiled_and_eager(size, mask, **backbone)
        for a, b in zip(compiled, eager):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_training_ends_like_another(image_folder, tmp_path):
    losses = []
    for flags in ([], ['--compile']):
        work_dir = tmp_path / f'run{len(flags)}'
        train(image_folder, work_dir, 'train_cfg.max_epochs=2', flags=flags)
        losses.append([line['loss'] for line in scalars(work_dir)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
