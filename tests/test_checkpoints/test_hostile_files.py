"""A checkpoint that would run code, given to every tool and through every way into a training."""

import re
import signal

import pytest
import torch
from mmengine.config import Config

from helpers.paths import ROOT
from simmim_plugin import cli

CLASSIFIER = 'configs/finetune/vit-tiny_folder.py'
PRETRAINING = 'configs/simmim_vit-tiny_folder.py'
DATA = ('--cfg-options', 'data_root={images}', 'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0')
# Words of a command line; {evil}: the checkpoint, {images}, {labelled}: folders, {out}: a new file or folder.
COMMANDS = {
    'reconstruct': ('reconstruct', '{evil}', '{image}', '--out', '{out}.png'),
    'features': ('features', '{evil}', '{images}', '--out', '{out}.npz'),
    'visualize': ('visualize', '{evil}', '{image}', '--out', '{out}.png'),
    'probe': ('probe', '{evil}', '{labelled}'),
    'export': ('export', '{evil}', '{out}.onnx'),
    'convert': ('convert', '{evil}', '{out}.pth', '--to', 'timm'),
    'test': ('test', CLASSIFIER, '{evil}', '--work-dir', '{out}', '--cfg-options', 'data_root={labelled}'),
    'resume a file': ('train', PRETRAINING, '--work-dir', '{out}', '--resume', '{evil}', *DATA),
    'resume a folder': ('train', PRETRAINING, '--work-dir', '{folder}', '--resume', *DATA),
    'load_from': ('train', PRETRAINING, '--work-dir', '{out}', *DATA, 'load_from={evil}'),
    'init_cfg': ('train', '{leaf}', '--work-dir', '{out}', *DATA),
    'load_from of a fine-tuning': (
        'train', CLASSIFIER, '--work-dir', '{out}', '--cfg-options', 'data_root={labelled}', 'load_from={evil}',
    ),
}  # fmt: skip


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, 'w'))


@pytest.fixture
def words(image_folder, tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'labelled').mkdir()
    for part in ('train', 'val'):
        (tmp_path / 'labelled' / part).symlink_to(image_folder)
    evil = tmp_path / 'folder/epoch_1.pth'
    content = dict(state_dict={'w': torch.ones(2)}, meta=dict(iter=1), optimizer=Evil(str(tmp_path / 'run')))
    torch.save(content, evil)
    init = dict(type='Pretrained', checkpoint=str(evil))
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f'_base_ = {str(ROOT / PRETRAINING)!r}\nmodel = dict(backbone=dict(init_cfg={init}))\n')
    return dict(
        leaf=leaf, evil=evil, images=image_folder, image=next(image_folder.rglob('*.jpg')),
        labelled=tmp_path / 'labelled', folder=evil.parent, out=tmp_path / 'out',
    )  # fmt: skip


def message_of(name, words, monkeypatch):
    """The error that a command ends with."""
    monkeypatch.chdir(ROOT)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with pytest.raises(SystemExit) as end:
            cli.main([word.format(**words) for word in COMMANDS[name]])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return str(end.value).splitlines()[0]


@pytest.mark.parametrize('name', COMMANDS)
def test_no_tool_runs_it(name, words, tmp_path, monkeypatch):
    message = message_of(name, words, monkeypatch)
    assert re.match(
        r'error: .*(holds Python objects \(.*open\), which are refused|no checkpoint in .* can be read)', message
    )
    assert not (tmp_path / 'run').exists()


def test_finetuning_does_not_run_it(words, tmp_path):
    with pytest.raises(SystemExit, match=r'holds Python objects \(.*open\), which are refused'):
        cli.main(['finetune', str(words['labelled']), '--checkpoint', str(words['evil']), '--out', str(words['out'])])
    assert not (tmp_path / 'run').exists()


def test_it_would_run(words, tmp_path):
    torch.load(words['evil'], weights_only=False)
    assert (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', ['resume a file', 'resume a folder'])
def test_a_config_in_a_checkpoint_is_not_run(name, words, tmp_path, monkeypatch):
    """MMEngine runs the text in meta['config'] when it resumes; such a file holds nothing but tensors and strings."""
    program = f'open({str(tmp_path / "run")!r}, "w")'
    meta = dict(iter=1, epoch=1, config=program)
    torch.save(dict(state_dict={'w': torch.ones(2)}, meta=meta, optimizer={}, message_hub={}), words['evil'])
    assert "has code in meta['config']" in message_of(name, words, monkeypatch)
    assert not (tmp_path / 'run').exists()
    Config.fromstring(program, '.py')
    assert (tmp_path / 'run').exists()
