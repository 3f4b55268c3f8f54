"""MMPretrain's own tools and Python interface on the configs of this package, read by MMEngine's `Config.fromfile`."""

import subprocess
import sys
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import init_default_scope
from mmpretrain import FeatureExtractor, ImageClassificationInferencer, get_model, inference_model
from mmpretrain.apis import ModelHub
from PIL import Image

from helpers.checkpoints import pretrained
from helpers.commands import SIMMIM, SMALL, run
from helpers.labelled import make_labelled
from helpers.models import TINY
from helpers.paths import ROOT
from simmim_plugin import ImageFolder, SimMIM
from simmim_plugin.config import load_config
from simmim_plugin.utils.resources import CONFIGS, shipped_configs

PRETRAINING = str(CONFIGS / 'simmim_vit-tiny_folder.py')
FINETUNING = str(CONFIGS / 'finetune/vit-tiny_folder.py')
MMPRETRAIN = Path(mmpretrain.__file__).parent / '.mim/tools'
# The parts that make samples in MMPretrain's form.
THEIRS = {
    'load': dict(_delete_=True, type='LoadImageFromFile'),
    'pack': dict(_delete_=True, type='mmpretrain.PackInputs'),
}

INDEX = """
Collections: [{{Name: Mine}}]
Models:
  - Name: mine
    In Collection: Mine
    Config: {out}/config.py
    Weights: {out}/epoch_1.pth
    Results: [{{Task: Image Classification, Dataset: mine, Metrics: {{Top 1 Accuracy: 50}}}}]
"""


def leaf(folder, base, text=''):
    (folder / 'leaf.py').write_text(f'_base_ = {str(base)!r}\n{text}\n')
    return str(folder / 'leaf.py')


@pytest.mark.parametrize('name', shipped_configs())
def test_mmengine_reads_what_load_config_reads(name):
    ours, theirs = load_config(name).to_dict(), Config.fromfile(CONFIGS / name).to_dict()
    for key in ('tta_model', 'tta_pipeline'):  # for the frameworks' tools, see test_tta.py
        assert (theirs.pop(key, None) is None) == ('test_dataloader' not in ours)
    for cfg in (ours, theirs):
        cfg.get('model', {}).pop('_scope_', None)
        for loader in [cfg[key] for key in cfg if key.endswith('_dataloader')]:
            loader['dataset'].pop('_scope_', None)
            workers = loader.pop('num_workers')
            assert cfg is ours or workers > 0
    assert theirs == ours
    assert '_part_' not in repr(theirs)


def test_the_first_config_of_a_process_is_filled_in(tmp_path):
    """In a program that has imported MMEngine alone."""
    path = leaf(tmp_path, PRETRAINING, "mask = dict(mask_ratio=0.5)\nflip = None\ndata_root = 'here'")
    code = (
        f'from mmengine.config import Config; data = Config.fromfile({path!r}).train_dataloader.dataset;'
        'print(data.data_root, *(part.type for part in data.pipeline), data.pipeline[2].mask_ratio)'
    )
    printed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [
        'here', 'LoadImage', 'RandomResizedCrop', 'SimMIMMaskGenerator', 'PackSimMIMInputs', '0.5',
    ]  # fmt: skip


def test_options_of_mmengine_reach_parts_and_data():
    cfg = Config.fromfile(PRETRAINING)
    cfg.work_dir = 'kept'
    cfg.merge_from_dict(
        {'mask.mask_ratio': 0.3, 'data_root': 'elsewhere', 'train_dataloader.dataset.pipeline.1.size': 32}
    )
    data = cfg.train_dataloader.dataset
    assert (data.pipeline[3].mask_ratio, data.data_root, data.pipeline[1].size) == (0.3, 'elsewhere', 32)
    assert cfg.work_dir == 'kept'
    cfg = Config.fromfile(CONFIGS / 'detection/mask-rcnn_vit-b_coco.py')
    cfg.merge_from_dict({'data_root': 'elsewhere'})
    assert cfg.test_evaluator.ann_file == 'elsewhere/annotations/instances_val2017.json'


def test_classes_are_those_of_the_data(tmp_path):
    data = make_labelled(tmp_path / 'data', dict(a=1, b=1, c=1), dict(a=1, b=1, c=1))
    other = make_labelled(tmp_path / 'other', dict(a=1, d=1), dict(a=1, d=1))
    cfg = Config.fromfile(FINETUNING)
    assert cfg.model.head.num_classes is None
    cfg.merge_from_dict({'data_root': str(data)})
    assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes == 3
    cfg = Config.fromfile(leaf(tmp_path, FINETUNING, f'data_root = {str(data)!r}'))
    assert get_model(cfg).head.fc.out_features == 3
    with pytest.raises(ValueError, match=r'has the classes a, d, but those of .*/data. were read .*: a, b, c; set'):
        cfg.merge_from_dict({'data_root': str(other)})
    assert get_model(FINETUNING, head=dict(num_classes=7)).head.fc.out_features == 7


@pytest.mark.parametrize('generator', ['simmim_plugin.SimMIMMaskGenerator', 'mmpretrain.SimMIMMaskGenerator'])
def test_samples_of_pack_inputs_give_the_same_loss(tmp_path, image_folder, generator):
    """The same images and masks in both forms, normalised by MMPretrain's preprocessor and by ours."""
    from mmpretrain.datasets.transforms import PackInputs
    from mmpretrain.models import SelfSupDataPreprocessor

    mask = dict(type=generator, mask_patch_size=16, model_patch_size=8, mask_ratio=0.6)
    mask |= dict(input_size=64) if generator.startswith('mmpretrain') else {}
    crop = dict(type='simmim_plugin.RandomResizedCrop', size=64)
    torch.manual_seed(0)
    np.random.seed(0)
    data = ImageFolder(str(image_folder), [dict(type='LoadImageFromFile'), crop, mask])
    samples = [data[i] for i in range(4)]
    assert samples[0]['img'].shape == (64, 64, 3)
    model = SimMIM(backbone={**TINY, 'img_size': 64, 'patch_size': 8})
    batch = default_collate([PackInputs()(sample) for sample in samples])
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    inputs = SelfSupDataPreprocessor(mean=mean, std=std, to_rgb=True)(batch, True)
    rgb = torch.stack([torch.from_numpy(sample['img'][..., ::-1].copy()).permute(2, 0, 1) for sample in samples])
    normal = (rgb.float() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(inputs['inputs'], normal)
    masks = torch.stack([torch.from_numpy(sample['mask']) for sample in samples])
    assert masks.float().mean() == 0.625  # 10 of 16 units
    expected = model.eval()(normal, masks, mode='loss')['loss']
    assert model(**inputs, mode='loss')['loss'] == expected
    with pytest.raises(ValueError, match='needs a mask'):
        model(normal, mode='loss', data_samples=[])


@pytest.mark.parametrize('name', ['simmim_vit-s.py', 'simmim_vit-s_32px.py', 'simmim_vit-tiny_folder.py'])
def test_get_model_builds_pretraining_configs(name):
    model = get_model(str(CONFIGS / name))
    assert type(model) is SimMIM
    size = model.backbone.img_size
    (features,) = model.extract_feat(torch.zeros(1, 3, *size))
    assert features.shape == (1, model.backbone.embed_dims, *(side // model.backbone.patch_size for side in size))


def test_the_model_index_is_registered(monkeypatch):
    monkeypatch.setattr(ModelHub, '_models_dict', {})
    ModelHub.register_model_index(ROOT / 'model-index.yml')
    assert 'simmim_vit-s' in ModelHub._models_dict
    for name, model in ModelHub._models_dict.items():
        assert Path(model.config).is_file(), name
    assert type(get_model('simmim_vit-s')) is SimMIM


def test_get_flops():
    """ViT-Tiny at 64 px: 64 tokens, six blocks of 12 d^2 + 2 n d multiplications per token, and the embedding."""
    printed = run(sys.executable, MMPRETRAIN / 'analysis_tools/get_flops.py', PRETRAINING, '--shape', '64')
    tokens, dims = 65, 192  # with the class token
    flops = 6 * tokens * (12 * dims**2 + 2 * tokens * dims) + 64 * 3 * 8 * 8 * dims
    found = float(printed.split('Flops: ')[1].split()[0].rstrip('GM')) * 1e9
    assert found == pytest.approx(flops, rel=0.03)  # norms are counted, too


@pytest.mark.parametrize(
    ('config', 'options'),
    [('simmim_vit-tiny_folder.py', []), ('finetune/vit-tiny_folder.py', ['optim_wrapper.paramwise_cfg=None'])],
)
def test_vis_scheduler(tmp_path, config, options):
    """Its stand-in for the model has no layers for a layer decay."""
    command = [sys.executable, MMPRETRAIN / 'visualization/vis_scheduler.py', CONFIGS / config]
    options = ['--cfg-options', *options] if options else []
    run(*command, '-d', 320, '--not-show', '-s', tmp_path / 'rate.png', *options, cwd=tmp_path)
    assert Image.open(tmp_path / 'rate.png').size[0] > 500


def test_browse_dataset(tmp_path, image_folder):
    """Its other modes fail with current versions of matplotlib, also on MMPretrain's configs."""
    options = [f'{part}.{key}={value}' for part, cfg in THEIRS.items() for key, value in cfg.items()]
    command = [sys.executable, MMPRETRAIN / 'visualization/browse_dataset.py', PRETRAINING, '-m', 'original']
    output = ['-o', tmp_path / 'out', '-n', 2, '--not-show']
    run(*command, *output, '--cfg-options', f'data_root={image_folder}', *options, cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['00.jpg', '02.jpg']


def test_a_pretraining_with_their_parts(tmp_path, image_folder):
    """`ReconstructionHook` and the loop take their batches as well."""
    parts = '\n'.join(f'{part} = {cfg!r}' for part, cfg in THEIRS.items())
    preprocessor = dict(type='mmpretrain.SelfSupDataPreprocessor', to_rgb=True)
    path = leaf(tmp_path, PRETRAINING, f'{parts}\nmodel = dict(data_preprocessor={preprocessor})')
    log = run(
        sys.executable, ROOT / 'tools/train.py', path, '--work-dir', tmp_path / 'work', '--cfg-options', *SMALL,
        f'data_root={image_folder}', 'train_cfg.max_epochs=1', 'param_scheduler.1.end=7',
    )  # fmt: skip
    assert 'Done. Masked-pixel loss on 4 fixed images' in log
    assert (tmp_path / 'work/reconstructions/epoch_1.png').is_file()


@pytest.fixture(scope='module')
def finetuned(tmp_path_factory):
    """Folder in which `simmim finetune` has trained a tiny classifier for an epoch."""
    folder = tmp_path_factory.mktemp('finetuned')
    make_labelled(folder / 'data', dict(a=4, b=4, c=4), dict(a=2, b=2, c=2), side=64)
    pretrained(folder / 'pretrained.pth', img_size=32, patch_size=8)
    command = ['finetune', folder / 'data', '--checkpoint', folder / 'pretrained.pth', '--out', folder / 'out']
    run(*SIMMIM, *command, '--epochs', 1, '--batch-size', 4)
    return folder


def test_inferencers_take_what_finetune_writes(finetuned, monkeypatch):
    """Paths, arrays, and the scores that the pipeline and the model give for the file."""
    out = finetuned / 'out'
    weights, photo = str(out / 'epoch_1.pth'), str(finetuned / 'data/val/b/0.png')
    model = get_model(str(out / 'config.py'), pretrained=weights)
    pipeline = load_config(str(out / 'config.py')).test_dataloader.dataset.pipeline
    init_default_scope('mmpretrain')
    sample = Compose(pipeline)(dict(img_path=photo))
    with torch.no_grad():
        (expected,) = model.test_step(default_collate([sample]))
    rgb = np.asarray(Image.open(photo))
    inferencer = ImageClassificationInferencer(str(out / 'config.py'), pretrained=weights, device='cpu')
    # `inference_model` takes models of an index alone, which names their task.
    (finetuned / 'index.yml').write_text(INDEX.format(out=out))
    monkeypatch.setattr(ModelHub, '_models_dict', {})
    ModelHub.register_model_index(finetuned / 'index.yml')
    for call in (inferencer, lambda image: [inference_model('mine', image, device='cpu')]):
        for given in (photo, np.ascontiguousarray(rgb[..., ::-1])):
            (found,) = call(given)
            np.testing.assert_allclose(found['pred_scores'], expected.pred_score.numpy(), rtol=1e-5)
            assert found['pred_class'] == 'abc'[found['pred_label']]
    (found,) = inferencer(rgb)  # another image, as MMPretrain's arrays are BGR
    assert not np.allclose(found['pred_scores'], expected.pred_score.numpy(), rtol=1e-5)
    (features,) = FeatureExtractor(model)(photo)
    with torch.no_grad():
        inputs = model.data_preprocessor(default_collate([sample]))['inputs']
        torch.testing.assert_close(features[-1], model.backbone(inputs)[-1][0])
