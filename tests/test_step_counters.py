"""What a training step costs, in counts that do not depend on the machine: graphs, breaks, waits, operators, bytes."""

from collections import Counter

import pytest
import torch
import torch._dynamo.utils
from conftest import ROOT
from mmengine.config import DictAction
from mmengine.hooks import Hook
from test_train import SMALL

from simmim_plugin import CompileHook, launch
from simmim_plugin.benchmark.counters import OperatorCounter
from simmim_plugin.config import load_config


class CountIterations(Hook):
    """Counts of every iteration, from what comes before the step to the last hook behind it; loading is left out."""

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self.iterations: list[Counter[str]] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.mode = OperatorCounter()
        self.mode.__enter__()

    def end(self) -> None:
        self.mode.__exit__(None, None, None)
        self.iterations.append(self.mode.counts)


class EndOfIteration(Hook):
    priority = 'LOWEST'

    def __init__(self, counter: CountIterations) -> None:
        self.counter = counter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.counter.end()


@pytest.fixture
def runner_of(tmp_path, image_folder):
    """A runner of the tiny config; `mask` is another generator."""

    def build(*options: str, mask: dict | None = None, **wishes: bool):
        settings = [f'data_root={image_folder}', *SMALL, 'default_hooks.logger.interval=3', *options]
        values = {key: DictAction._parse_iterable(value) for key, value in (x.split('=', 1) for x in settings)}
        cfg = load_config(str(ROOT / 'configs/simmim_vit-tiny_folder.py'), values)
        if mask:
            cfg.train_dataloader.dataset.pipeline[3] = dict(type='SimMIMMaskGenerator', model_patch_size=8, **mask)
        launch.prepare(cfg, 'counted.py', str(tmp_path / 'work'), **wishes)
        return launch.build_runner(cfg)

    return build


def counted(runner) -> list[Counter[str]]:
    counter = CountIterations()
    runner.register_hook(counter)
    runner.register_hook(EndOfIteration(counter))
    runner.train()
    return counter.iterations


MASKS = [None, dict(local=dict(ratio=0.5, unit=16), global_=dict(ratio=0.2, unit=32))]


@pytest.mark.parametrize('mask', MASKS, ids=['published', 'simultaneous'])
def test_nothing_waits_for_the_device_between_log_lines(runner_of, mask):
    iterations = counted(runner_of('train_cfg.max_epochs=2', mask=mask))
    assert len(iterations) == 6
    assert [counts['_local_scalar_dense'] + counts['nonzero'] for counts in iterations] == [0] * 6


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
    # Simultaneous masks hide a varying number of patches: the second graph is for any number.
    assert counters['stats']['unique_graphs'] in ((1,) if mask is None else (1, 2))
    assert list(runner.model.state_dict()) == names
