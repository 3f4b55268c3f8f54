"""The `simmim` command line: its files, messages and processes; the wheel that contains it."""

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.commands import SIMMIM, run
from helpers.paths import ROOT
from simmim_plugin import cli
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.commands import doctor, pretrain, recipes, sample
from simmim_plugin.config import load_config
from simmim_plugin.datasets.preparation.sample_sets import KINDS
from simmim_plugin.models.layers.architecture import ARCHS
from simmim_plugin.utils import resources


@pytest.fixture
def labelled(image_folder, tmp_path):
    """train/ and val/ with two classes of six images each."""
    for part in ('train', 'val'):
        (tmp_path / 'labelled').mkdir(exist_ok=True)
        (tmp_path / 'labelled' / part).symlink_to(image_folder)
    return tmp_path / 'labelled'


def test_every_command_has_a_help_with_its_own_name(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as end:
            cli.main([name, '--help'])
        output = capsys.readouterr().out
        assert end.value.code == 0 and f'usage: simmim {name} ' in output
        assert 'python tools/' not in output and re.search(rf'^(  |example: )simmim {name}\b', output, re.M)
    cli.main([])
    output = capsys.readouterr().out
    assert all(f'simmim {name} ' in output for name in cli.COMMANDS)
    with pytest.raises(SystemExit, match="no command 'pretrian'; did you mean 'pretrain'\\? It has: quickstart"):
        cli.main(['pretrian'])


HEAVY = {'torch', 'mmengine', 'timm', 'matplotlib', 'transformers'}
PARSE = f"""import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as end:
    assert not end.code
print('heavy:', sorted({HEAVY} & set(sys.modules)))
"""


@pytest.mark.parametrize('words', [*([n, '--help'] for n in cli.COMMANDS), ['print-config', 'quickstart.py', '--path']])
def test_a_help_text_imports_nothing_heavy(words, tmp_path):
    main = tmp_path / 'simmim'
    main.write_text('from simmim_plugin.cli import main\nmain()\n')
    assert run(sys.executable, '-c', PARSE, main, *words).endswith('\nheavy: []\n')


def test_a_tool_imports_nothing_heavy_for_its_help_text(tmp_path):
    """From another folder, with tools/ first on the path as in `python tools/probe.py`."""
    start = f'import sys; sys.path[0] = {str(ROOT / "tools")!r}\n{PARSE}'
    output = run(sys.executable, '-c', start, ROOT / 'tools/probe.py', '--help', cwd=tmp_path)
    assert output.startswith('usage: python tools/probe.py ') and output.endswith('\nheavy: []\n')


def test_choices_of_the_parsers_match_the_package():
    assert ('tiny', *ARCHS) == pretrain.SIZES and tuple(KINDS) == sample.KINDS


def test_configs_of_the_package_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('configs/simmim_vit-b.py', 'simmim_vit-b.py', 'finetune/vit-b_in1k.py'):
        assert Path(resources.find_config(name)).is_file()
        assert load_config(name).filename.startswith(str(resources.CONFIGS))
    Path('simmim_vit-b.py').write_text('a = 1')
    assert resources.find_config('simmim_vit-b.py') == 'simmim_vit-b.py'  # the user's file comes first
    for name in ('setup.py', '../setup.py', 'configs/../setup.py'):
        with pytest.raises(FileNotFoundError, match=re.escape(f'config {name!r} does not exist')):
            resources.find_config(name)


@pytest.mark.slow
def test_pretrain_and_finetune_without_a_config(image_folder, labelled, tmp_path):
    common = ('--epochs', 2, '--batch-size', 4)
    output = run(*SIMMIM, 'pretrain', image_folder, '--arch', 'tiny', *common, '--out', tmp_path / 'a', cwd=tmp_path)
    assert 'batch:   1 x 4 = 4 images\nrate:    0.000188 = 0.0015 x 4 / 32\nlength:  2 epochs of 3 iterations' in output
    assert f'{resources.TOOLS}/dist_train.sh {tmp_path}/a/config.py 1 --work-dir {tmp_path}/a' in output
    assert 'at the start ->' in output and (tmp_path / 'a/reconstructions/epoch_2.png').exists()

    (events,) = (tmp_path / 'a').rglob('events.out.tfevents.*')
    curves = EventAccumulator(str(events)).Reload().Tags()
    assert {'fixed/loss', 'fixed/loss_visible_mean'} <= set(curves['scalars']) and curves['images'] == [
        'reconstruction'
    ]

    checkpoint = tmp_path / 'a/epoch_2.pth'
    output = run(*SIMMIM, 'finetune', labelled, '--checkpoint', checkpoint, *common, '--out', tmp_path / 'b')
    assert 'classes: 2, the folders of' in output and 'accuracy/top1' in output
    log = next((tmp_path / 'b').glob('*/*.log')).read_text()
    assert 'tensors of load_from' in log
    assert load_file(tmp_path / 'b/epoch_2.pth')['state_dict']['head.fc.weight'].shape == (2, 192)

    output = run(*SIMMIM, 'pretrain', image_folder, '--arch', 'tiny', '--epochs', 3, '--out', tmp_path / 'a', ok=False)
    assert 'holds checkpoints of a training: continue it with --resume' in output
    other = ('--epochs', 3, '--resume', '--out', tmp_path / 'a')
    output = run(*SIMMIM, 'pretrain', image_folder, '--arch', 'tiny', *other, ok=False)
    assert "other settings: 'epochs, warmup = 2, 1' there, 'epochs, warmup = 3, 1' now" in output
    again = ('--epochs', 2, '--resume')  # the batch size is that of the first start
    output = run(*SIMMIM, 'pretrain', image_folder, '--arch', 'tiny', *again, '--out', tmp_path / 'a')
    assert 'resumed epoch: 2' in output


def test_fine_tuning_takes_the_architecture_of_the_checkpoint(labelled, tmp_path):
    """At 224 px, and of a converted checkpoint: absolute positions, no LayerScale, a list for the size."""
    backbone = dict(
        type='SimMIMViT', arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        img_size=[224, 224], patch_size=16, layer_scale_init_value=0.0, use_abs_pos_embed=True,
        use_shared_rel_pos_bias=False,
    )  # fmt: skip
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': {'w': torch.ones(1)}, 'simmim_plugin': {'model': {'backbone': backbone}}}, path)
    cli.main(['finetune', str(labelled), '--checkpoint', str(path), '--dry-run', '--out', str(tmp_path / 'out')])
    cfg = load_config(str(tmp_path / 'out/config.py'))
    written = cfg.model.backbone
    assert (written.img_size, written.layer_scale_init_value, written.use_abs_pos_embed) == (224, 0.0, True)
    assert not written.use_rel_pos_bias and written.arch == backbone['arch'] and cfg.model.head.in_channels == 32
    train, test = (cfg[f'{part}_dataloader'].dataset.pipeline for part in ('train', 'test'))
    assert (train[1].scale, test[1].scale, test[2].crop_size) == (224, 256, 224)
    MODELS.build({**cfg.model, '_scope_': 'mmpretrain'})


@pytest.mark.parametrize(
    ('arch', 'size', 'patch', 'unit'),
    [('tiny', None, 8, 16), ('small', 96, 16, 32), ('base', 64, 16, 32), ('huge', 56, 14, 28)],
)
def test_written_config_of_each_size(image_folder, tmp_path, capsys, arch, size, patch, unit):
    options = [] if size is None else ['--img-size', str(size)]
    batch = ['--batch-size', '2'] if arch == 'huge' else []
    cli.main(
        ['pretrain', str(image_folder), '--arch', arch, *options, *batch, '--dry-run', '--out', str(tmp_path / 'x')]
    )
    cfg = load_config(str(tmp_path / 'x/config.py'))
    size = size or (64 if arch == 'tiny' else 224)
    backbone, (crop, generator) = cfg.model.backbone, cfg.train_dataloader.dataset.pipeline[1:4:2]
    assert (backbone.img_size, backbone.patch_size, crop.size) == (size, patch, size)
    assert (generator.mask_patch_size, generator.model_patch_size) == (unit, patch)
    assert cfg.train_dataloader.batch_size == (2 if arch == 'huge' else 1)  # of 12 images, ten iterations
    output = capsys.readouterr().out
    assert 'dist_train.sh' in output
    assert ('(few images: 10 iterations per epoch at least)' in output) == (arch != 'huge')


def test_the_path_of_a_config_is_printed(capsys):
    cli.main(['print-config', 'simmim_vit-b.py', '--path'])
    assert capsys.readouterr().out == f'{ROOT}/configs/simmim_vit-b.py\n'


def test_configs_of_the_package_are_listed(capsys):
    cli.main(['print-config'])
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert len(listed) == len([path for path in (ROOT / 'configs').rglob('*.py') if path.parent.name != '_base_'])
    assert listed['finetune/vit-b_in1k.py'].startswith('Fine-tune ViT-B/16 on ImageNet-1k')


def test_without_mmengine_the_command_line_says_what_to_install(tmp_path):
    (tmp_path / 'simmim').write_text(
        'import sys\nsys.modules["mmengine"] = None\nfrom simmim_plugin.cli import main\nmain()\n'
    )
    output = run(sys.executable, tmp_path / 'simmim', 'sample', 'photos', 'photos', ok=False)
    assert output.startswith('error: simmim_plugin needs MMEngine') and 'Traceback' not in output
    assert 'simmim doctor' in run(sys.executable, tmp_path / 'simmim', '--help')
    for words in (('sample', '--help'), ('train', 'x.py', '--help')):
        assert 'usage: simmim' in run(sys.executable, tmp_path / 'simmim', *words)
    output = run(sys.executable, tmp_path / 'simmim', 'train', 'x.py', '--cfg-options', 'a=1', ok=False)
    assert output.startswith('error: simmim_plugin needs MMEngine') and 'Traceback' not in output
    output = run(sys.executable, tmp_path / 'simmim', 'doctor', ok=False)
    assert '(everything)\n' in output and "fix: pip install 'simmim_plugin[" in output and 'Traceback' not in output


@pytest.mark.parametrize('line', ['from simmim_plugin import SimMIMViT', 'import simmim_plugin.registry'])
def test_without_mmengine_a_component_says_what_to_install(line):
    output = run(sys.executable, '-c', f'import sys\nsys.modules["mmengine"] = None\n{line}', ok=False)
    assert output.splitlines()[-1].startswith(
        'ModuleNotFoundError: simmim_plugin needs MMEngine, which is not installed'
    )


def test_batch_that_fits(monkeypatch):
    cfg = load_config('simmim_vit-b.py')
    cfg.model.backbone.arch = dict(embed_dims=64, num_layers=2, num_heads=2, feedforward_channels=128)
    sizes = {}
    for free in (0.02, 0.05, 10.0):
        monkeypatch.setattr(recipes, 'free_memory', lambda free=free: free * 1e9)
        sizes[free] = recipes.fitting_batch(cfg, 224, images=10**6, devices=1, largest=2048)
    assert sizes[0.02].batch < sizes[0.05].batch < sizes[10.0].batch == 32
    assert all(fit.gigabytes <= 0.8 * fit.free for fit in sizes.values())
    assert recipes.fitting_batch(cfg, 224, images=170, devices=2, largest=2048).batch == 8  # ten iterations at least
    monkeypatch.setattr(recipes, 'free_memory', lambda: 1e6)
    with pytest.raises(ValueError, match=r'a step of one image needs about 0\.0 GB, .* take a smaller --arch'):
        recipes.fitting_batch(cfg, 224, images=10**6, devices=1, largest=2048)


@pytest.mark.parametrize(
    ('images', 'total', 'usual', 'epochs'),
    [
        # By hand: 300 // 16 = 18 iterations per epoch, 5000 / 18 = 277.8; 3000 // 32 = 93 and 3000 // 256 = 11, 454.5.
        (300, 16, 60, 278), (3_000, 32, 60, 60), (3_000, 256, 100, 455), (300_000, 32, 60, 60),
        (300_000, 2048, 100, 100), (50_000, 2048, 100, 209), (12, 1, 60, 417), (2, 4, 60, 5_000),
    ],
)  # fmt: skip
def test_epochs_of_small_folders(images, total, usual, epochs):
    assert recipes.enough_epochs(usual, images, total) == epochs


def test_length_and_time_are_printed_and_a_resumed_training_keeps_its_length(image_folder, tmp_path, capsys):
    """12 images in batches of 4: 3 iterations per epoch, 5000 / 3 = 1666.7."""
    words = ['pretrain', str(image_folder), '--arch', 'tiny', '--dry-run', '--out', str(tmp_path / 'a')]
    cli.main([*words, '--batch-size', '4'])
    assert 'length:  1667 epochs of 3 iterations over 12 images, 5,001 in all, ' in capsys.readouterr().out
    path = tmp_path / 'a/config.py'
    path.write_text(path.read_text().replace('epochs, warmup = 1667, 10', 'epochs, warmup = 60, 6'))
    cli.main([*words, '--resume'])  # of a version that had 60 epochs for any folder
    assert 'length:  60 epochs of 3 iterations' in capsys.readouterr().out
    cli.main([*words[:-1], str(tmp_path / 'b')])
    assert re.search(r'time:    about \d+ \w+, at [\d.e+]+ images/s measured here', capsys.readouterr().out)
    durations = {30: '1 minute', 7200: '120 minutes', 7300: '2 hours', 72 * 3600: '72 hours', 864_000: '10 days'}
    assert {seconds: recipes._duration(seconds) for seconds in durations} == durations


def test_a_config_of_the_user_is_not_overwritten(image_folder, tmp_path):
    (tmp_path / 'config.py').write_text('mine = 1')
    with pytest.raises(SystemExit, match='was not written by simmim, so it is not overwritten'):
        cli.main(['pretrain', str(image_folder), '--arch', 'tiny', '--out', str(tmp_path)])
    assert (tmp_path / 'config.py').read_text() == 'mine = 1'


def test_a_moved_run_resumes_and_one_with_other_settings_does_not(image_folder, tmp_path):
    words = ['pretrain', str(image_folder), '--arch', 'tiny', '--dry-run', '--resume']
    cli.main([*words, '--epochs', '3', '--out', str(tmp_path / 'here')])
    (tmp_path / 'here/epoch_1.pth').touch()  # as if trained
    (tmp_path / 'here').rename(tmp_path / 'there')
    cli.main([*words, '--epochs', '3', '--out', str(tmp_path / 'there')])
    with pytest.raises(SystemExit, match="other settings: 'epochs, warmup = 3, 1' there, 'epochs, warmup = 4, 1' now"):
        cli.main([*words, '--epochs', '4', '--out', str(tmp_path / 'there')])


def test_few_images_and_a_rate_for_large_batches_are_reported(image_folder, tmp_path, capsys):
    for arch, low in (('tiny', False), ('base', True)):
        words = ['--arch', arch, '--batch-size', '4', '--dry-run', '--out', str(tmp_path / arch)]
        cli.main(['pretrain', str(image_folder), *words])
        output = capsys.readouterr().out
        assert 'note:    12 images are few' in output
        assert ('a rate stated for batches of 2048' in output) == low


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['--img-size', '225'],
            '--img-size=225 must be a positive multiple of 16, e.g. 224; whole patches',
        ),
        (['--img-size', '0'], '--img-size=0 must be a positive multiple of 16, e.g. 16; whole patches'),
        (['--patch-size', '0'], '--patch-size=0 must be a whole number of at least 1'),
        (['--epochs', '0'], '--epochs=0 must be a whole number of at least 1'),
        (['--batch-size', '-1'], '--batch-size=-1 must be a whole number of at least 1'),
        (['--batch-size', '13'], '--batch-size=13 must be a whole number from 1 to 12; 12 images for --devices=1'),
    ],
)
def test_bad_numbers_are_named(image_folder, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        cli.main(['pretrain', str(image_folder), *words, '--out', str(tmp_path / 'x')])
    assert not (tmp_path / 'x/config.py').exists()


def test_doctor_names_each_problem_and_its_fix(monkeypatch, capsys):
    assert doctor.conflicts() == []
    versions = {'onedl-mmengine': '0.10.12', 'mmengine': '0.10.7', 'transformers': '5.1', 'onedl-mmpretrain': '1.3.6'}
    monkeypatch.setattr(doctor, 'installed', lambda names: {n: versions[n] for n in names if n in versions})
    real = importlib.import_module

    def refuse(name):
        if name == 'mmpretrain.models':
            raise TypeError('NoneType takes no arguments')
        return real(name)

    with monkeypatch.context() as patched:
        patched.setattr(importlib, 'import_module', refuse)
        output = dict(doctor.conflicts())
    assert output['onedl-mmengine and mmengine both provide mmengine and overwrite each other'].startswith(
        'pip uninstall -y mmengine;'
    )
    assert "pip install 'transformers<5'" in output.values() and 'pip install torchvision' in output.values()
    monkeypatch.setitem(doctor.PARTS, 'no_such_module', ((), 'nothing', 'pip install it'))
    assert ('no_such_module', 'not installed', 'nothing', 'pip install it') in doctor.parts()
    with pytest.raises(SystemExit) as end:
        cli.main(['doctor'])
    assert end.value.code == 1 and 'fix: pip install it' in capsys.readouterr().out


@pytest.mark.slow
def test_wheel_works_from_an_empty_folder(image_folder, tmp_path):
    """Unpacked as by `pip install`, out of reach of the checkout."""
    source = tmp_path / 'source'  # a copy: the checkout may have a build/ from before, which would be packed
    ignored = shutil.ignore_patterns('.*', 'build', '*.egg-info', 'work_dirs', 'docs', 'tests')
    shutil.copytree(ROOT, source, ignore=ignored)
    build = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-q', '-w', tmp_path, source]
    subprocess.run([str(word) for word in build], check=True, cwd=tmp_path, capture_output=True)
    (wheel,) = tmp_path.glob('simmim_plugin-*.whl')
    site = tmp_path / 'site'
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(site)
    assert {'simmim_plugin/.mim/configs/simmim_vit-b.py', 'simmim_plugin/.mim/model-index.yml'} <= set(names)
    assert {'simmim_plugin/py.typed', 'simmim_plugin/.mim/tools/dist_train.sh'} <= set(names)
    (tmp_path / 'empty').mkdir()
    start = f'import sys; sys.path.insert(0, {str(site)!r}); from simmim_plugin.cli import main; main()'
    common = ('--arch', 'tiny', '--epochs', 1, '--batch-size', 4, '--out', 'out')
    output = run(sys.executable, '-c', start, 'pretrain', image_folder, *common, cwd=tmp_path / 'empty')
    assert 'at the start ->' in output and str(site / 'simmim_plugin/.mim/tools/dist_train.sh') in output
    output = run(sys.executable, '-c', start, 'print-config', 'simmim_vit-b.py', cwd=tmp_path / 'empty')
    assert "arch='base'" in output
    script = site / 'simmim_plugin/.mim/tools/print_config.py'
    output = run(
        'env', f'PYTHONPATH={site}', sys.executable, script, 'simmim_vit-b.py', '--path', cwd=tmp_path / 'empty'
    )
    assert output == f'{site}/simmim_plugin/.mim/configs/simmim_vit-b.py\n'
