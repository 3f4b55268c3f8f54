import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from helpers.models import TINY
from simmim_plugin import SimMIM, SimMIMViT, cli
from simmim_plugin.apis.visualize_features import draw_features, input_size
from simmim_plugin.commands.visualize_features import ask_point
from simmim_plugin.visualization.features import feature_sheet, pca_rgb, similarity
from simmim_plugin.visualization.sheets import GAP_PX, HEADER_PX, PANEL_PX

IMAGE = torch.randn(1, 3, 48, 80, generator=torch.Generator().manual_seed(0))


def backbone(**kwargs: object) -> SimMIMViT:
    """A tiny backbone with random weights, including the bias tables."""
    torch.manual_seed(0)
    model = SimMIMViT(**{k: v for k, v in TINY.items() if k != 'type'} | kwargs).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_pca_finds_planted_directions():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing='ij')
    checks = (x + y) % 2
    # Strong along x, weaker along y, weakest for the chequers; the large mean must not matter.
    directions = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1))).Q[:3]
    directions = directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    planted = torch.stack((10 * x, 3 * y, checks), dim=-1)
    found = pca_rgb(planted @ directions + 100)
    assert found.shape == (6, 9, 3) and found.min() == 0 and found.max() == 1
    for i, pattern in enumerate((x, y, checks)):
        assert torch.corrcoef(torch.stack((found[..., i].flatten(), pattern.flatten())))[0, 1] > 0.99
    # Two directions only: the third colour is constant, and rounding errors are not amplified.
    found = pca_rgb((planted * torch.tensor([1, 1, 0])) @ directions + 100)
    assert (found[..., 2] == 0.5).all() and found[..., :2].std() > 0.2
    assert (pca_rgb(torch.full((2, 2, 8), 7.0)) == 0.5).all()
    with pytest.raises(ValueError, match=r'features of shape \(4, 4, 2\): expected \(h, w, D\) with D of 3 or more'):
        pca_rgb(torch.zeros(4, 4, 2))


def test_similarity_is_the_cosine():
    features = torch.tensor([[[1.0, 2, 0], [-2, -4, 0]], [[2, -1, 7], [3, 6, 0]]])
    torch.testing.assert_close(similarity(features, (0, 0))[0], torch.tensor([1.0, -1]))
    features[1, 0, 2] = 0
    torch.testing.assert_close(similarity(features, (0, 0))[1], torch.tensor([0.0, 1]))
    assert similarity(features, (1, 0))[1, 0] == pytest.approx(1)


def test_sizes_keep_the_proportions_and_fit_the_patches():
    model = backbone()  # 64 px, patches of 16
    assert input_size((400, 600), None, model) == (64, 96)
    assert input_size((600, 400), 256, model) == (384, 256)
    assert input_size((400, 600), [250, 100], model) == (256, 96)
    assert input_size((3, 2), [100], model) == (144, 96)
    for size, shown in ((15, '15'), (-1, '-1'), ([64, 0], '0'), (64.0, '64.0'), ('x', "'x'")):
        words = f'--size={shown} must be a whole number of at least 16; a patch has 16 x 16 px'
        with pytest.raises(ValueError, match=words):
            input_size((400, 600), size, model)
    with pytest.raises(ValueError, match=r'--size=\[1, 2, 3\] must be the shorter side, or height and width'):
        input_size((400, 600), [1, 2, 3], model)


def test_the_sheet_marks_the_patch_and_shows_the_maps():
    model = backbone()
    image = torch.full((3, 48, 80), 100.0)
    image[0, 0, 0] = 200
    with torch.no_grad():
        _, outputs = model.forward_intermediates(IMAGE, attention_of=(1, 2))
    maps = [(features[0].permute(1, 2, 0), attention[0]) for features, attention in outputs]
    sheet = feature_sheet(image, maps, (1, 2), ['a', 'b', 'c'])
    patch, height, width = 48, 144, 240  # three times as large
    assert sheet.shape == (HEADER_PX + 3 * (height + HEADER_PX + GAP_PX) + GAP_PX, 4 * (width + GAP_PX) + GAP_PX, 3)
    top, left = HEADER_PX, GAP_PX
    assert sheet[top + patch, left + 2 * patch].tolist() == [100] * 3  # the patch itself is not covered
    assert sheet[top + patch - 1, left + 2 * patch].tolist() == [255, 0, 0]
    assert sheet[top + patch - 3, left + 2 * patch].tolist() == [255] * 3
    left += 2 * (width + GAP_PX)
    assert sheet[top + patch, left + 2 * patch].tolist() == [253, 231, 37]  # most similar to itself: viridis' yellow
    left += width + GAP_PX
    row, column = divmod(int(maps[0][1].mean(0).argmax()), 5)
    assert sheet[top + row * patch + 24, left + column * patch + 24].tolist() == [252, 255, 164]  # inferno's lightest
    alike = [(torch.ones(3, 5, 8) + 1e-4 * torch.arange(8), torch.full((4, 3, 5), 1 / 16))]
    sheet = feature_sheet(image, alike, (1, 2), ['alike'])
    for column, colour in ((2, [253, 231, 37]), (3, [252, 255, 164])):  # noise is not amplified
        tile = sheet[top : top + patch, GAP_PX + column * (width + GAP_PX) :][:, :patch]
        assert (tile == colour).all()


@pytest.fixture
def checkpoint(tmp_path):
    config = dict(
        type='SimMIM',
        backbone=TINY,
        data_preprocessor=dict(type='SimMIMDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3),
    )
    model = SimMIM(**{k: v for k, v in config.items() if k != 'type'})
    note = dict(model=config, pipeline=[dict(type='LoadImage', channels=3)])
    torch.save(dict(state_dict=model.state_dict(), simmim_plugin=note), tmp_path / 'tiny.pth')
    return tmp_path / 'tiny.pth'


@pytest.fixture
def photos(tmp_path):
    """A wide and a small square photo."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / 'wide.png', tmp_path / 'a_name_that_is_longer_than_there_is_room_for.png']
    for path, (height, width) in zip(paths, ((60, 150), (40, 40))):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


def sheet_height(height, rows):
    return HEADER_PX + rows * (height + HEADER_PX + GAP_PX) + GAP_PX


def test_the_tool_draws_large_images_of_several_shapes(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / 'new/features.png'
    words = [checkpoint, *photos, '--size', 256, '--blocks', 3, 1, '--point', 39, 0, '--out', out]
    cli.main(['visualize', *map(str, words)])
    assert f'picture: {out}' in capsys.readouterr().out
    assert Image.open(out).size == (4 * (640 + GAP_PX) + GAP_PX, 2 * sheet_height(256, 2))
    draw_features(checkpoint, photos[:1], out)  # three blocks; 64 x 160 px, twice as large
    assert Image.open(out).size == (4 * (320 + GAP_PX) + GAP_PX, sheet_height(128, 3))
    draw_features(checkpoint, photos[1:], out, blocks='all', size=(32, 48))
    assert Image.open(out).size == (4 * (PANEL_PX + GAP_PX) + GAP_PX, sheet_height(128, 3))


def test_the_point_is_one_of_the_image_file(checkpoint, photos, tmp_path, monkeypatch):
    queries, forward = [], SimMIMViT.forward_intermediates
    monkeypatch.setattr(
        SimMIMViT,
        'forward_intermediates',
        lambda *args, attention_of, **kwargs: (
            queries.append(attention_of) or forward(*args, attention_of=attention_of, **kwargs)
        ),
    )
    for point in (None, (0, 0), (149, 59), (74, 29), (75, 30)):
        draw_features(checkpoint, photos[:1], tmp_path / 'x.png', point, blocks=[1])  # 4 x 10 patches
    assert queries == [(2, 5), (0, 0), (3, 9), (1, 4), (2, 5)]


def test_a_click_gives_the_point(monkeypatch):
    matplotlib.use('Agg')
    image = torch.zeros(3, 60, 150, dtype=torch.uint8)
    with pytest.raises(ValueError, match='--click cannot open a window: no display, or no GUI toolkit; give --point'):
        ask_point(image, 'photo.png')
    monkeypatch.setattr(FigureCanvasAgg, 'required_interactive_framework', 'a screen')
    for click, point in (((40.2, 7.6), (40, 8)), ((-0.5, 59.49), (0, 59)), ((149.5, 10), (149, 10))):
        monkeypatch.setattr(Figure, 'ginput', lambda *args, click=click, **kwargs: [click])
        assert ask_point(image, 'photo.png') == point
    monkeypatch.setattr(Figure, 'ginput', lambda *args, **kwargs: [])
    with pytest.raises(ValueError, match=r'the window of photo.png was closed without a click'):
        ask_point(image, 'photo.png')


def test_bad_input_is_named(checkpoint, photos, tmp_path):
    out = tmp_path / 'x.png'
    (tmp_path / 'text.png').write_text('no image')
    for point, words in (
        (
            (120, 50),
            'x of --point=120 must be a whole number from 0 to 39; .*long.*png has 40 x 40 px .width x height.',
        ),
        ((-1, 0), 'x of --point=-1 must be a whole number from 0 to 149; .*wide.png has 150 x 60 px .width x height.'),
        ((0, 60), 'y of --point=60 must be a whole number from 0 to 59; .*wide.png has 150 x 60 px .width x height.'),
        ((0, 1.0), 'y of --point=1.0 must be a whole number from 0 to 59; .*'),
    ):
        with pytest.raises(ValueError, match=f'^{words}$'):
            draw_features(checkpoint, photos, out, point)
    for blocks in ([4], [0], [1, 'x'], 'some', []):
        with pytest.raises(ValueError, match=r"blocks=.*: the model has blocks 1 ... 3; give numbers of these, or 'a"):
            draw_features(checkpoint, photos, out, blocks=blocks)
    with pytest.raises(ValueError, match='--size=8 must be a whole number of at least 16; a patch has 16 x 16 px'):
        draw_features(checkpoint, photos, out, size=8)
    with pytest.raises(ValueError, match=r'text.png: cannot identify image file'):
        draw_features(checkpoint, [*photos, tmp_path / 'text.png'], out)
    for name in ('x', 'x.pth', 'x.psd'):
        with pytest.raises(ValueError, match=rf'--out .*{name}: no picture format has this ending; use .png'):
            draw_features(checkpoint, photos, tmp_path / name)
    with pytest.raises(ValueError, match=r'--device abacus cannot be used \(.*\); use cpu, or cuda'):
        draw_features(checkpoint, photos, out, device='abacus')
    assert not out.exists()
    with pytest.raises(SystemExit, match=r"^error: blocks=\['two'\]: the model has blocks 1 ... 3"):
        cli.main(['visualize', str(checkpoint), str(photos[0]), '--blocks', 'two', '--out', str(out)])


def test_too_large_a_size_is_named(checkpoint, photos, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(SimMIMViT, 'forward_intermediates', fail)
    with pytest.raises(ValueError, match=r'--size: the 4 x 10 patches of .*wide.png at 64 x 160 px need more memory'):
        draw_features(checkpoint, photos, tmp_path / 'x.png')
