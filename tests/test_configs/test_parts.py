"""Named parts of pipelines: settings in a leaf config or an option apply wherever the part occurs."""

import pytest
from mmengine.config import Config

from helpers.paths import ROOT
from simmim_plugin.commands import recipes
from simmim_plugin.config import load_config, named_parts
from simmim_plugin.utils.resources import shipped_configs

CONFIG = str(ROOT / 'configs/simmim_vit-b_folder.py')
PUBLISHED = dict(type='SimMIMMaskGenerator', mask_ratio=0.6, mask_patch_size=32, model_patch_size=16)
# The leaf that earlier versions documented, by the number of the part.
NUMBERED = """
train_pipeline = _base_.train_pipeline
train_pipeline[1].size = 192
train_pipeline[3].update(mask_ratio=0.5)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
"""


def pipelines(cfg):
    data = cfg.train_dataloader.dataset
    return [[dict(part) for part in found] for found in (cfg.train_pipeline, data.get('dataset', data).pipeline)]


@pytest.fixture
def load(tmp_path):
    """Loads a leaf config of simmim_vit-b_folder.py."""

    def of(text, options=None):
        (tmp_path / 'leaf.py').write_text(f'_base_ = {CONFIG!r}\n{text}\n')
        return load_config(str(tmp_path / 'leaf.py'), options)

    return of


def test_the_published_pipeline():
    for pipeline in pipelines(load_config(CONFIG)):
        assert pipeline == [
            dict(type='LoadImage', defer=True),
            dict(type='RandomResizedCrop', size=224, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3), interpolation='bilinear'),
            dict(type='RandomHorizontalFlip'),
            PUBLISHED,
            dict(type='PackSimMIMInputs'),
        ]


@pytest.mark.parametrize('config', [CONFIG, str(ROOT / 'configs/quickstart.py')])
def test_an_option_reaches_every_pipeline(config):
    cfg = load_config(config, {'mask.mask_ratio': 0.75, 'crop.size': 192, 'load.channels': 4})
    assert cfg.mask.mask_ratio == 0.75
    for load, crop, _, mask, _ in pipelines(cfg):
        assert (load['channels'], crop['size'], mask['mask_ratio']) == (4, 192, 0.75)


def test_a_part_of_two_pipelines_changes_in_both_and_by_its_place_in_one():
    options = {'load.channels': 1, 'val_dataloader.dataset.pipeline.0.dtype': 'float32'}
    cfg = load_config(str(ROOT / 'configs/finetune/vit-tiny_folder_10pct.py'), options)
    for data in (cfg.train_dataloader.dataset.dataset, cfg.test_dataloader.dataset):
        assert data.pipeline[0] == dict(type='simmim_plugin.LoadImage', channels=1)
    assert cfg.val_dataloader.dataset.pipeline[0].dtype == 'float32'
    assert cfg.val_dataloader.dataset.pipeline[0].channels == 1


def test_a_leaf_names_the_part_alone(load):
    for pipeline in pipelines(load('mask = dict(mask_ratio=0.5)')):
        assert pipeline[3] == PUBLISHED | dict(mask_ratio=0.5)
    tokens = dict(type='SimMIMMaskGenerator', local=dict(ratio=0.5, unit=16), model_patch_size=16)
    cfg = load(f'mask = dict(_delete_=True, **{tokens})', {'mask.local.ratio': 0.25})
    for pipeline in pipelines(cfg):
        assert pipeline[3] == tokens | dict(local=dict(ratio=0.25, unit=16))
    cfg = load('', {'mask._delete_': True, 'mask.type': 'Mine'})
    assert [pipeline[3] for pipeline in pipelines(cfg)] == [dict(type='Mine')] * 2


def test_a_part_may_be_left_out_or_added(load):
    text = "train_pipeline = [dict(_part_='load'), dict(_part_='mask', mask_ratio=0.1), dict(type='Mine')]\n"
    cfg = load(text + 'train_dataloader = dict(dataset=dict(pipeline=train_pipeline))')
    expected = [dict(type='LoadImage', defer=True), PUBLISHED | dict(mask_ratio=0.1), dict(type='Mine')]
    assert pipelines(cfg) == [expected] * 2


def test_leaves_and_options_by_number_work_as_before(load):
    by_name = load('crop = dict(size=192)\nmask = dict(mask_ratio=0.5)')
    assert pipelines(load(NUMBERED)) == pipelines(by_name)
    assert pipelines(load('', {'train_pipeline.1.size': 192, 'train_pipeline.3.mask_ratio': 0.5})) == pipelines(by_name)
    with pytest.raises(
        ValueError, match=r"nothing is built from 'mask'; set one of the named parts load, flip, pack, or a key"
    ):
        load(NUMBERED, {'mask.mask_ratio': 0.4})


def test_a_dumped_config_takes_the_same_options(tmp_path, load):
    """With the names, and as earlier versions wrote it, without."""
    options = {'crop.size': 192, 'mask.mask_ratio': 0.75}
    cfg = load('mask = dict(mask_ratio=0.5)')
    cfg.dump(tmp_path / 'dumped.py')
    assert load_config(str(tmp_path / 'dumped.py')).to_dict() == cfg.to_dict()
    expected = pipelines(load('', options))
    assert pipelines(load_config(str(tmp_path / 'dumped.py'), options)) == expected
    plain = {key: value for key, value in cfg.to_dict().items() if key not in named_parts(cfg)}
    Config(plain).dump(tmp_path / 'old.py')
    assert load_config(str(tmp_path / 'old.py')).to_dict() == plain
    by_number = {'train_pipeline.1.size': 192, 'train_pipeline.3.mask_ratio': 0.75}
    assert pipelines(load_config(str(tmp_path / 'old.py'), by_number)) == expected


def test_an_unknown_name_is_reported(load):
    with pytest.raises(ValueError, match="_part_='crops' names no top-level key of the config; did you mean 'crop'"):
        load("train_pipeline = [dict(_part_='crops')]")


def test_an_option_that_nothing_is_built_from_is_rejected():
    config = str(ROOT / 'configs/detection/mask-rcnn_vit-b_coco.py')
    with pytest.raises(
        ValueError, match=r"vit.arch: nothing is built from 'vit'; set one of the named parts load, annotations"
    ):
        load_config(config, {'vit.arch': 'large'})


@pytest.mark.parametrize('name', shipped_configs())
def test_every_place_has_one_name(name):
    """Equal parts with two names would be ambiguous; every part of a pipeline has a name and a type."""
    cfg = load_config(name)
    parts = [cfg[part] for part in named_parts(cfg)]
    assert all(parts.count(part) == 1 for part in parts)
    if cfg.get('train_dataloader'):
        for loader in (cfg.train_dataloader, cfg.get('val_dataloader')):
            data = loader.dataset if loader else {}
            for part in data.get('dataset', data).get('pipeline', ()):
                assert 'type' in part and part in parts


def test_a_run_whose_config_has_numbered_parts_resumes(tmp_path):
    """`simmim pretrain --resume` compares the settings of a written config, not its text."""
    head = f'"""Written by `simmim pretrain`; everything else is inherited."""\n_base_ = {CONFIG!r}\n'
    text = head + 'crop = dict(size=192)\nmask = dict(mask_ratio=0.5)\n'
    (tmp_path / 'config.py').write_text(head + NUMBERED)
    (tmp_path / 'epoch_1.pth').touch()
    with pytest.raises(ValueError, match='of a training with other settings'):
        recipes.write_config(text.replace('192', '160'), tmp_path, resume=True)
    assert recipes.write_config(text, tmp_path, resume=True).read_text() == text


def test_a_part_may_be_left_out_or_hold_parts(load):
    assert [t.type for t in load('flip = None\n').train_pipeline] == [
        'LoadImage', 'RandomResizedCrop', 'SimMIMMaskGenerator', 'PackSimMIMInputs',
    ]  # fmt: skip
    cfg = load("views = dict(type='V', transforms=[dict(_part_='crop')])\ntrain_pipeline = [dict(_part_='views')]\n")
    assert cfg.train_pipeline[0].transforms[0].type == 'RandomResizedCrop'
    with pytest.raises(ValueError, match="flip='no' must be a dict, or None to leave the part out"):
        load("flip = 'no'\n")
