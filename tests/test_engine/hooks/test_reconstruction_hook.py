import logging
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from PIL import Image

from helpers.models import TINY
from helpers.paths import ROOT
from simmim_plugin import ProbeHook, ReconstructionHook, SimMIM, SimMIMMaskGenerator, SimMIMViT
from simmim_plugin.apis import train
from simmim_plugin.checkpoints.files import load_file
from simmim_plugin.config import load_config
from simmim_plugin.models.losses import visible_mean
from simmim_plugin.utils.random_state import fixed_seed

SMALL = {key: value for key, value in TINY.items() if key != 'type'}


class Samples(torch.utils.data.Dataset):
    """Random images and masks, as a training pipeline makes them."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        return dict(inputs=image, mask=torch.from_numpy(SimMIMMaskGenerator()({'img': image})['mask']))


@pytest.mark.parametrize('target', ['pixels', 'normalized_pixels', 'low_pass', 'hog', 'features'])
def test_measures_the_models_own_loss_and_leaves_the_run_alone(target, tmp_path, caplog):
    caplog.set_level(logging.INFO, 'test')
    torch.manual_seed(0)
    preprocessor = dict(type='SimMIMDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3)
    head = dict(target=dict(type='features', teacher=SimMIMViT(**SMALL)) if target == 'features' else target)
    model = SimMIM(backbone=dict(TINY, drop_path_rate=0.5), head=head, data_preprocessor=preprocessor).train()
    shown = []
    visualizer = SimpleNamespace(
        add_image=lambda name, image, step: shown.append((name, step, image.shape)),
        add_scalars=lambda values, step: None,
    )
    runner = SimpleNamespace(
        model=model, train_dataloader=SimpleNamespace(dataset=Samples()), epoch=0, iter=0, work_dir=str(tmp_path),
        hooks=[], logger=logging.getLogger('test'), visualizer=visualizer,
        message_hub=MessageHub.get_instance('hook_test'),
    )  # fmt: skip
    hook = ReconstructionHook(num_images=2, num_measured=5)
    state = torch.get_rng_state(), np.random.get_state(legacy=False)['state']['key'].copy(), random.getstate()
    hook.before_train(runner)
    assert (
        torch.equal(torch.get_rng_state(), state[0])
        and (np.random.get_state(legacy=False)['state']['key'] == state[1]).all()
    )
    assert random.getstate() == state[2] and model.training

    # The hook predicts in three batches; the model's own loss is computed in one.
    data = model.eval().data_preprocessor({k: v.clone() for k, v in hook.batch.items()})
    with torch.no_grad():
        expected = model(data['inputs'], mask=hook.masks['mask'], mode='loss')['loss'].item()
    assert len(hook.masks['mask']) == 5
    assert hook.last_loss == pytest.approx(expected, rel=1e-5)
    unit = dict(hog='cell', features='token').get(target, 'pixel')
    assert f'Fixed images, epoch 0: masked-{unit} loss {expected:.4f}' in caplog.text
    # Uniform noise of 0 ... 255 in units of 60: the mean absolute distance from its mean is 256 / 4 / 60.
    if target == 'pixels':
        assert hook.mean_loss == pytest.approx(256 / 4 / 60, rel=0.02)
    else:
        assert 0 < hook.mean_loss < 2
    assert np.asarray(Image.open(tmp_path / 'reconstructions/epoch_0.png')).shape == shown[0][2]
    assert shown[0][:2] == ('reconstruction', 0)

    again = ReconstructionHook(num_images=2, num_measured=5)
    again.before_train(runner)
    assert torch.equal(again.batch['inputs'], hook.batch['inputs'])  # fixed


def test_wrong_arguments_are_named():
    for argument, value, words in (
        ('interval', 0, 'interval=0 must be a whole number of at least 1'),
        ('num_images', 1.0, 'num_images=1.0 must be a whole number of at least 1'),
        ('num_measured', None, 'num_measured=None must be a whole number of at least 1'),
        ('by_epoch', 'yes', "by_epoch='yes' must be True or False"),
        ('seed', -1, 'seed=-1 must be a whole number from 0 to 4294967295'),
    ):
        with pytest.raises(ValueError, match=f'^ReconstructionHook.{words}$'):
            ReconstructionHook(**{argument: value})
    dataset = [dict(inputs=torch.zeros(3, 64, 64))]
    runner = SimpleNamespace(model=SimMIM(TINY), train_dataloader=SimpleNamespace(dataset=dataset))
    with pytest.raises(ValueError, match='add SimMIMMaskGenerator'):
        ReconstructionHook().before_train(runner)


def test_visible_mean_by_hand():
    image = torch.tensor([[[[1.0, 3.0], [5.0, 100.0]]]])
    mask = torch.tensor([[[[0, 0], [0, 1]]]])
    assert visible_mean(image, mask).unique().tolist() == [3]
    assert visible_mean(image, torch.ones_like(mask)).unique().tolist() == [0]


def test_fixed_seed_restores_the_random_states():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    with fixed_seed(3):
        inside = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with fixed_seed(3):
        assert draw() == inside
    assert draw() == first
    for seed in (-1, 2**32, 1.0, None):
        with pytest.raises(ValueError, match=f'^seed={seed} must be a whole number from 0 to 4294967295$'):
            fixed_seed(seed).__enter__()


def test_with_an_average_the_weights_in_the_checkpoint_are_shown(image_folder, tmp_path, capsys):
    config_file = str(ROOT / 'configs/simmim_vit-tiny_folder.py')
    folder = tmp_path / 'labelled'
    for part in ('train', 'val'):
        shutil.copytree(image_folder, folder / part)
    hooks = [
        dict(type='ReconstructionHook', num_images=2, num_measured=4), dict(type='ProbeHook', data_root=str(folder)),
        dict(type='EMAHook', ema_type='simmim_plugin.ForeachEMA', momentum=0.2),
    ]  # fmt: skip
    options = {
        'data_root': str(image_folder), 'train_dataloader.batch_size': 4, 'train_dataloader.num_workers': 0,
        'train_cfg.max_epochs': 1, 'custom_hooks': hooks, 'auto_scale_lr.base_batch_size': 4,
        'param_scheduler': None,
    }  # fmt: skip
    runner = train.build_runner(train.prepare(load_config(config_file, options), config_file, str(tmp_path / 'work')))
    train.run_training(runner)
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, ReconstructionHook)]
    (probe,) = [hook for hook in runner.hooks if isinstance(hook, ProbeHook)]
    checkpoint = load_file(tmp_path / 'work/epoch_1.pth')
    saved = MODELS.build(runner.cfg.model)
    saved.load_state_dict(checkpoint['state_dict'])
    data = saved.eval().data_preprocessor({k: v.clone() for k, v in hook.batch.items()})
    with torch.no_grad():
        expected = saved(data['inputs'], mask=hook.masks['mask'], mode='loss')['loss'].item()
        raw = runner.model.eval()(data['inputs'], mask=hook.masks['mask'], mode='loss')['loss'].item()
    assert hook.last_loss == pytest.approx(expected, rel=1e-5) and abs(raw - expected) > 0.01
    probed = probe._extractor(runner).backbone.state_dict()
    assert all(torch.equal(x, checkpoint['state_dict'][f'backbone.{name}']) for name, x in probed.items())
    printed = ''.join(capsys.readouterr())
    assert 'Fixed images, epoch 1, averaged weights as in the checkpoint: masked-pixel loss' in printed
    assert 'Probes, epoch 1, averaged weights as in the checkpoint: ' in printed
