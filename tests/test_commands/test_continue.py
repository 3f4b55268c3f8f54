"""`simmim pretrain --init`: what is read off the weights, written into the config, and loaded."""

import functools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BeitConfig, BeitModel

from helpers.checkpoints import MEAN, pretrained
from helpers.commands import SIMMIM, run
from helpers.hubs import empty_cache, snapshot
from helpers.other_projects import photos, randomise
from simmim_plugin import cli
from simmim_plugin import pretrain as pretrain_in_python
from simmim_plugin.checkpoints.loading import fit_checkpoint
from simmim_plugin.checkpoints.saved import read
from simmim_plugin.config import load_config
from simmim_plugin.registry import build_part

SIZE = dict(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=64, patch_size=16,
    layer_norm_eps=1e-6, use_mean_pooling=False,
)  # fmt: skip


@pytest.fixture
def beit(tmp_path) -> tuple[Path, BeitModel]:
    """A Hugging Face folder with tables in each block and LayerScale, and the model in it."""
    return hf_folder(tmp_path / 'beit', use_relative_position_bias=True, layer_scale_init_value=0.1)


def hf_folder(path: Path, **config) -> tuple[Path, BeitModel]:
    model = BeitModel(BeitConfig(**SIZE, **config), add_pooling_layer=False)
    randomise(model)
    model.save_pretrained(path)
    (path / 'preprocessor_config.json').write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}')
    return path, model


def written(images: Path, out: Path, *words: object):
    cli.main(['pretrain', *map(str, (images, *words, '--batch-size', 4, '--dry-run', '--out', out))])
    return load_config(str(out / 'config.py'))


def loaded(cfg) -> tuple[nn.Module, list[str]]:
    """The model of a config with the weights of its `load_from`, and the names of those that are new."""
    model = build_part(cfg.model).eval()
    saved = read(cfg.load_from)
    checkpoint = {'state_dict': saved.state, 'simmim_plugin': saved.note}
    fitted = fit_checkpoint(model, checkpoint)
    model.load_state_dict(checkpoint['state_dict'])
    assert fitted is not None
    return model, fitted.kept


def same_features(model: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        (ours,), expected = model(images), theirs(images).last_hidden_state[:, 1:]
    assert torch.allclose(ours.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_the_architecture_is_that_of_the_weights(beit, image_folder, tmp_path, capsys):
    folder, theirs = beit
    cfg = written(image_folder, tmp_path / 'out', '--init', folder)
    backbone = cfg.model.backbone
    assert cfg.load_from == str(folder)
    assert backbone.arch == dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96)
    assert (backbone.img_size, backbone.patch_size, backbone.layer_scale_init_value) == (64, 16, 0.1)
    assert backbone.use_rel_pos_bias and not backbone.use_shared_rel_pos_bias and not backbone.use_abs_pos_embed
    assert cfg.model.data_preprocessor.mean == [127.5] * 3 and cfg.model.data_preprocessor.std == [127.5, 63.75, 127.5]
    crop, mask = (cfg.train_dataloader.dataset.pipeline[i] for i in (1, 3))
    assert (crop.size, mask.mask_patch_size, mask.model_patch_size) == (64, 32, 16)
    assert cfg.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.8 and cfg.train_cfg.max_epochs == 30
    assert 'rate:    6.25e-05 = 0.0005 x 4 / 32' in capsys.readouterr().out
    model, new = loaded(cfg)
    assert new == ['backbone.mask_token', 'head.decoder.weight', 'head.decoder.bias']
    same_features(model, theirs, photos('pretrain'))


def test_a_dinov2_of_timm(image_folder, tmp_path, monkeypatch):
    """Patches of 14 px, register tokens, LayerScale, a position embedding of the patches alone; by its name."""
    name = 'vit_base_patch14_reg4_dinov2.lvd142m'
    small = functools.partial(timm.create_model, embed_dim=64, depth=2, num_heads=4, img_size=56)
    theirs: Any = randomise(small(name))
    cache = empty_cache(tmp_path / 'cache', monkeypatch)
    save_file(theirs.state_dict(), snapshot(cache, f'timm/{name}') / 'model.safetensors')
    monkeypatch.setattr(timm, 'create_model', small)
    cfg = written(image_folder, tmp_path / 'out', '--init', f'timm:{name}')
    assert cfg.load_from == f'timm:{name}' and cfg.model.backbone.num_registers == 4
    assert cfg.model.data_preprocessor.mean == pytest.approx([123.675, 116.28, 103.53])
    images = nn.functional.interpolate(photos('pretrain'), (56, 56))
    model, new = loaded(cfg)
    assert new == ['backbone.mask_token', 'head.decoder.weight', 'head.decoder.bias']
    with torch.no_grad():
        (ours,), expected = model(images), theirs.forward_features(images)[:, 5:]
    assert torch.allclose(ours.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_another_size_and_tables_of_zeros(image_folder, tmp_path):
    folder, theirs = hf_folder(tmp_path / 'absolute', use_absolute_position_embeddings=True, layer_scale_init_value=0)
    cfg = written(image_folder, tmp_path / 'out', '--init', folder, '--rel-pos-bias')
    backbone = cfg.model.backbone
    assert backbone.use_abs_pos_embed and backbone.use_shared_rel_pos_bias and backbone.layer_scale_init_value == 0
    model, new = loaded(cfg)
    table = 'backbone.rel_pos_bias.relative_position_bias_table'
    assert table in new and not model.get_parameter(table).any()
    same_features(model, theirs, photos('pretrain'))
    larger = written(image_folder, tmp_path / 'larger', '--init', folder, '--img-size', 128)
    assert larger.model.backbone.img_size == 128 and larger.train_cfg.max_epochs == 50
    resized = loaded(larger)[0].backbone.pos_embed
    old = theirs.embeddings.position_embeddings
    grid = old[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (8, 8), mode='bicubic', antialias=True).flatten(2).transpose(1, 2)
    assert torch.allclose(resized, torch.cat((old[:, :1], expected), dim=1), atol=1e-6)


def test_heads_that_the_weights_do_not_tell(image_folder, tmp_path, capsys):
    """As in MoCo v3's ViT-S: more heads than in the published models of that width, which is said, and can be said."""
    sizes = dict(img_size=64, patch_size=16, embed_dim=192, depth=12, num_heads=12, num_classes=0)
    theirs: Any = randomise(VisionTransformer(**sizes))
    path, images = tmp_path / 'weights.pth', photos('pretrain')
    torch.save(theirs.state_dict(), path)
    line = 'assumed: 3 heads, as in published models of this width and depth; others: --num-heads'
    for part in ('train', 'val'):
        (tmp_path / 'data').mkdir(exist_ok=True)
        (tmp_path / 'data' / part).symlink_to(image_folder)
    finetune = ['finetune', tmp_path / 'data', '--checkpoint', path, '--batch-size', 4, '--dry-run', '--out']
    written(image_folder, tmp_path / 'out', '--init', path)
    assert line in capsys.readouterr().out
    cli.main([*map(str, (*finetune, tmp_path / 'tuned'))])
    assert line in capsys.readouterr().out
    cfg = written(image_folder, tmp_path / 'out', '--init', path, '--num-heads', 12)
    with torch.no_grad():
        (ours,), expected = loaded(cfg)[0](images), theirs.forward_features(images)[:, 1:]
    assert torch.allclose(ours.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5 * expected.abs().max())
    cli.main([*map(str, (*finetune, tmp_path / 'tuned', '--num-heads', 12))])
    assert load_config(str(tmp_path / 'tuned/config.py')).model.backbone.arch.num_heads == 12
    out = pretrain_in_python(image_folder, init=path, num_heads=12, batch_size=4, dry_run=True, out=tmp_path / 'python')
    assert load_config(str(out / 'config.py')).model.backbone.arch.num_heads == 12
    assert 'assumed' not in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r'--num-heads 6: .*weights.pth.* states 12; leave it out'):
        written(image_folder, tmp_path / 'out', '--init', path, '--num-heads', 6, '--resume')
    for words in (('pretrain', image_folder), ('transfer', '--data-root', tmp_path / 'data')):
        with pytest.raises(SystemExit, match='--num-heads 6 is for --init'):
            cli.main([*map(str, (*words, '--num-heads', 6, '--out', tmp_path / 'none'))])


def test_a_decoder_of_the_same_shape_is_taken(image_folder, tmp_path):
    path = tmp_path / 'ours.pth'
    theirs = pretrained(path, patch_size=16)
    cfg = written(image_folder, tmp_path / 'out', '--init', path)
    model, new = loaded(cfg)
    assert new == [] and cfg.model.data_preprocessor.mean == MEAN
    for name in ('head.decoder.weight', 'backbone.mask_token'):
        assert torch.equal(model.get_parameter(name), theirs.get_parameter(name))


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--arch', 'base'], r'--arch base: .* is of another size \(embed_dims=48, .*\); leave --arch out'),
        (['--patch-size', '8'], '--patch-size 8: .* has patches of 16 px; leave it out, or convert the weights first'),
        (['--num-heads', '6'], '--num-heads 6: the bias tables have 4 heads|--num-heads 6: .* states 4; leave it out'),
        (['--img-size', '72'], '--img-size=72 must be a positive multiple of 16, e.g. '),
        (['--rel-pos-bias'], '--rel-pos-bias: .* has relative position bias tables; leave it out'),
    ],
)
def test_options_that_contradict_the_weights_are_named(beit, image_folder, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        written(image_folder, tmp_path / 'out', '--init', beit[0], *words)
    assert not (tmp_path / 'out/config.py').exists()


def test_what_is_no_checkpoint_of_a_vit_is_refused(image_folder, tmp_path):
    with pytest.raises(SystemExit, match='--rel-pos-bias is for --init'):
        written(image_folder, tmp_path / 'out', '--rel-pos-bias')
    with pytest.raises(SystemExit, match='does not exist'):
        written(image_folder, tmp_path / 'out', '--init', tmp_path / 'x.pth')
    torch.save(timm.create_model('test_vit').state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(SystemExit, match=r'among how many heads .*; give --num-heads N'):
        written(image_folder, tmp_path / 'out', '--init', tmp_path / 'vit.pth')
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / 'x.pth')
    with pytest.raises(SystemExit, match=r"checkpoint '.*x.pth': "):
        written(image_folder, tmp_path / 'out', '--init', tmp_path / 'x.pth')


def test_in_python(beit, image_folder, tmp_path):
    options = dict(init=beit[0], epochs=2, batch_size=4, dry_run=True)
    out = pretrain_in_python([image_folder], out=tmp_path / 'python', **options)
    assert out == tmp_path / 'python'
    written(image_folder, tmp_path / 'shell', '--init', beit[0], '--epochs', 2)
    texts = [(folder / 'config.py').read_text().replace(str(folder), '') for folder in (out, tmp_path / 'shell')]
    assert texts[0] == texts[1]
    with pytest.raises(TypeError, match=r"pretrain\(\) has no option 'epoch'; it has arch, img_size, .*epochs"):
        pretrain_in_python(image_folder, epoch=1)
    with pytest.raises(ValueError, match="--arch='nano' is unknown; choose one of None, 'tiny'"):
        pretrain_in_python(image_folder, arch='nano')
    with pytest.raises(ValueError, match='devices=2 must be 1 in Python'):
        pretrain_in_python(image_folder, devices=2)


@pytest.mark.slow
def test_continue_resume_and_finetune(beit, image_folder, tmp_path):
    folder, out = beit[0], tmp_path / 'out'
    words = ('pretrain', image_folder, '--init', folder, '--epochs', 2, '--batch-size', 4, '--out', out)
    output = run(*SIMMIM, *words)
    assert 'tensors of load_from; new ones, as initialised: backbone.mask_token, head.decoder.weight' in output
    assert 'Skipped, not in the model: none\nResized to the model: none' in output.replace(' ' * 4, '')
    folder.rename(tmp_path / 'gone')  # resuming needs it no more
    (out / 'epoch_2.pth').unlink()
    (out / 'last_checkpoint').unlink()
    output = run(*SIMMIM, *words, '--resume')
    assert 'resumed epoch: 1' in output and 'tensors of load_from' not in output
    for part in ('train', 'val'):
        (tmp_path / 'data').mkdir(exist_ok=True)
        (tmp_path / 'data' / part).symlink_to(image_folder)
    for checkpoint, *more in ((out / 'epoch_2.pth',), (tmp_path / 'gone', '--dry-run')):
        words = ('finetune', tmp_path / 'data', '--checkpoint', checkpoint, '--epochs', 1, '--batch-size', 4, *more)
        output = run(*SIMMIM, *words, '--out', tmp_path / checkpoint.stem)
        assert ('accuracy/top1' in output) != bool(more)
        cfg = load_config(str(tmp_path / checkpoint.stem / 'config.py'))
        assert cfg.model.data_preprocessor.mean == [127.5] * 3 and cfg.model.backbone.use_rel_pos_bias
