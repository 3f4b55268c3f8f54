import pickle
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import DataLoader

from helpers.models import TINY
from simmim_plugin import SimMIM
from simmim_plugin.checkpoints import loading
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.checkpoints.loading import build_backbone, load_pretrained
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.engine.hooks.checkpoint_hook import _from_plain, _to_plain
from simmim_plugin.models.fit import check_fits

pytestmark = pytest.mark.core


class Evil:
    def __reduce__(self):
        return (print, ('code from a checkpoint was run',))


def test_arbitrary_pickles_are_refused_and_not_run(tmp_path, capsys):
    torch.save({'state_dict': {}, 'extra': Evil()}, tmp_path / 'evil.pth')
    with pytest.raises(
        ValueError, match=r"evil.pth' cannot be read: it holds Python objects \(.*print\), which are refused"
    ):
        load_file(tmp_path / 'evil.pth')
    assert 'code from' not in capsys.readouterr().out


def test_damaged_and_missing_files_are_named(tmp_path):
    torch.save({'state_dict': {'w': torch.zeros(1000)}}, tmp_path / 'whole.pth')
    (tmp_path / 'half.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:1000])
    (tmp_path / 'empty.pth').write_bytes(b'')
    (tmp_path / 'other.pth').write_bytes(pickle.dumps([1]))
    for name in ('half', 'empty', 'other'):
        with pytest.raises(ValueError, match=rf'{name}.pth. cannot be read: it'):
            load_pretrained(tmp_path / f'{name}.pth')
    with pytest.raises(FileNotFoundError, match=r"nothing.pth' does not exist"):
        load_pretrained(tmp_path / 'nothing.pth')
    with pytest.raises(ValueError, match='carries no config of simmim_plugin'):
        load_pretrained(tmp_path / 'whole.pth')


def test_a_classifier_cannot_reconstruct(tmp_path):
    note = dict(model=dict(type='mmpretrain.ImageClassifier', backbone=TINY), pipeline=[])
    torch.save({'state_dict': {'w': torch.zeros(1)}, 'simmim_plugin': note}, tmp_path / 'fine.pth')
    with pytest.raises(
        ValueError, match=r"fine.pth' holds a ImageClassifier, which cannot reconstruct images; give a pre"
    ):
        load_pretrained(tmp_path / 'fine.pth')


def test_a_backbone_is_rebuilt_with_changes_and_nothing_left_out(tmp_path):
    model = SimMIM(backbone=TINY)
    note: dict[str, Any] = dict(
        model=dict(type='SimMIM', backbone=dict(TINY, frozen_stages=2, out_indices=[0])), pipeline=[]
    )
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': note}, tmp_path / 'a.pth')
    backbone = build_backbone(read(tmp_path / 'a.pth'), img_size=96)
    assert backbone.grid == (6, 6) and all(parameter.requires_grad for parameter in backbone.parameters())
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        (ours,), (theirs,) = backbone(image), model.eval().backbone(image)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    note['model']['backbone']['layer_scale_init_value'] = 0.0  # the weights have LayerScale
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': note}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"a.pth': .* not in the model: blocks.0.gamma_1, .*; use"):
        build_backbone(read(tmp_path / 'a.pth'))


def test_another_epsilon_is_logged_also_where_the_file_has_our_default(tmp_path, monkeypatch):
    """A config in a checkpoint notes norm_eps only where it is not 1e-6, SimMIMViT's default."""
    lines: list[str] = []
    monkeypatch.setattr(loading, 'print_log', lambda text, *_: lines.append(text))
    model = SimMIM(backbone=TINY)
    note = dict(model=dict(type='SimMIM', backbone=TINY), pipeline=[])
    for eps, logged in ((1e-3, True), (1e-6, False)):
        content = {'state_dict': model.state_dict(), 'simmim_plugin': note}
        loading.fit_checkpoint(SimMIM(backbone={**TINY, 'norm_eps': eps}), content)
        assert ('The checkpoint was trained with norm_eps=1e-06, the model has 0.001: see SimMIMViT' in lines) == logged
        lines.clear()


def test_differences_are_in_words():
    model = {'a.weight': torch.zeros(2, 3), 'b': torch.zeros(1)}
    check_fits(model, dict(model))
    with pytest.raises(ValueError, match=r'another architecture: .* shape: a.weight \(4, 3\) instead of \(2, 3\)'):
        check_fits(model, {'a.weight': torch.zeros(4, 3), 'b': torch.zeros(1)})
    with pytest.raises(ValueError, match='not in the checkpoint: b;'):
        check_fits(model, {'a.weight': torch.zeros(2, 3)})
    with pytest.raises(ValueError, match='not in the model: other;'):
        check_fits(model, {**model, 'other': torch.zeros(1)})


def test_histories_survive_as_plain_data(tmp_path):
    history = HistoryBuffer([1.0, 2.0, 3.0], [1, 1, 2], max_length=5)
    torch.save(_to_plain({'train/loss': history, 'lr': np.float64(0.1), 'text': 'x'}), tmp_path / 'a.pth')
    plain = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert plain['lr'] == 0.1 and type(plain['lr']) is float and plain['text'] == 'x'
    back = _from_plain(plain['train/loss'])
    assert back.max_length == 5 and back.mean() == history.mean() == 6 / 4 and back.current() == 3


def test_a_runner_made_in_python_saves_and_resumes_too(tmp_path):
    def runner(epochs: int, resume: bool) -> Runner:
        samples = [dict(inputs=torch.rand(3, 64, 64), mask=torch.ones(4, 4)) for _ in range(4)]
        return Runner(
            model=SimMIM(backbone=TINY),
            work_dir=str(tmp_path),
            train_dataloader=DataLoader(samples, batch_size=2),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(
                checkpoint=dict(type='simmim_plugin.SimMIMCheckpointHook', interval=1),
                seeds=dict(type='simmim_plugin.IterationSeedHook'),
                interrupt=dict(type='simmim_plugin.InterruptHook'),
            ),
            resume=resume,
            experiment_name=f'python_{resume}',
        )

    runner(1, False).train()
    saved = load_file(tmp_path / 'epoch_1.pth')
    assert saved['meta']['iter'] == 2 and 'simmim_plugin' not in saved
    resumed = runner(2, True)
    resumed.train()
    assert resumed.iter == 4 and len(resumed.message_hub.get_scalar('train/loss').data[0]) == 4


class Scores(BaseMetric):
    """Better each time but the third."""

    scores = iter(())

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {'score': next(Scores.scores)}


class WithPrediction(SimMIM):
    def val_step(self, data):
        return [0]


@pytest.mark.parametrize('kind', [Runner, FlexibleRunner])
def test_the_best_checkpoint_and_the_one_rewritten_after_it_say_where_they_are(kind, tmp_path):
    """MMEngine writes the last checkpoint again when a validation was the best, whatever the interval is."""
    Scores.scores = iter((1.0, 2.0, 1.5, 3.0, 2.5))
    data = DataLoader([dict(inputs=torch.rand(3, 64, 64), mask=torch.ones(4, 4)) for _ in range(4)], batch_size=2)
    kind(
        model=WithPrediction(backbone=TINY), work_dir=str(tmp_path), train_dataloader=data, val_dataloader=data,
        train_cfg=dict(by_epoch=True, max_epochs=5, val_interval=1), val_cfg=dict(), val_evaluator=[Scores()],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), experiment_name=f'best_{kind.__name__}',
        default_hooks=dict(
            checkpoint=dict(type='simmim_plugin.SimMIMCheckpointHook', interval=3, save_best='score', rule='greater')
        ),
    ).train()  # fmt: skip
    found = {path.stem: load_file(path)['meta'] for path in tmp_path.glob('*.pth')}
    assert {name: (meta['epoch'], meta['iter']) for name, meta in found.items()} == {
        'epoch_3': (3, 6), 'best_score_epoch_4': (4, 8), 'epoch_4': (4, 8), 'epoch_5': (5, 10),
    }  # fmt: skip


def test_the_file_is_named_once(tmp_path):
    note: dict[str, Any] = dict(model=dict(type='SimMIM', backbone=dict(TINY, patch_size='x')), pipeline=[])
    torch.save({'state_dict': SimMIM(backbone=TINY).state_dict(), 'simmim_plugin': note}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=rf"^checkpoint '{tmp_path}/a.pth': patch_size='x' must be a whole number"):
        loading.PretrainedViT(tmp_path / 'a.pth')(SimMIM(backbone=TINY).backbone)
