"""Random crops and flips: compared with torchvision, and on JPEGs decoded at the smallest scale that the crop needs."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from skimage.data import astronaut
from torchvision import transforms

from simmim_plugin import ImageFolder, LoadImage, PackSimMIMInputs, RandomHorizontalFlip, RandomResizedCrop
from simmim_plugin.datasets.images import ImageReadError
from simmim_plugin.datasets.jpeg import PendingJPEG, least_size, pending_jpeg
from simmim_plugin.datasets.transforms import crop
from simmim_plugin.datasets.transforms.crop import _scaled

pytestmark = pytest.mark.core


def save(path, size, **kwargs):
    """A photo as JPEG; the large ones are enlarged and have noise, as cameras do."""
    image = Image.fromarray(astronaut()).resize(size, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 3, (size[1], size[0], 3))
    Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=92, **kwargs)
    return str(path)


class TorchDraws:
    """Python's `random` with PyTorch's numbers, as torchvision draws them."""

    random = staticmethod(lambda: torch.rand(1).item())
    uniform = staticmethod(lambda low, high: torch.empty(1).uniform_(low, high).item())
    randint = staticmethod(lambda low, high: int(torch.randint(low, high + 1, (1,)).item()))


@pytest.fixture
def torch_draws(monkeypatch):
    monkeypatch.setattr(crop, 'random', TorchDraws)


def by_torchvision(path, size, seed):
    """The reference's crop and flip of PIL's image."""
    torch.manual_seed(seed)
    reference = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3)),
            transforms.RandomHorizontalFlip(),
        ]
    )
    return torch.from_numpy(np.array(reference(Image.open(path).convert('RGB')))).permute(2, 0, 1)


def ours(path, size, seed, defer=True):
    torch.manual_seed(seed)
    sample = LoadImage(defer=defer)({'img_path': path})
    return PackSimMIMInputs()(RandomHorizontalFlip()(RandomResizedCrop(size)(sample)))['inputs']


def test_pixels_are_those_of_the_reference(tmp_path, torch_draws):
    path = save(tmp_path / 'photo.jpg', (500, 375))  # no crop of it could be decoded smaller
    for seed in range(8):
        found = ours(path, 224, seed)
        assert found.shape == (3, 224, 224) and found.dtype == torch.uint8 and found.is_contiguous()
        expected = by_torchvision(path, 224, seed)
        assert (found.float() - expected.float()).abs().mean().item() < 0.5  # of 255; docs/performance.md
        assert (ours(path, 224, seed, defer=False).float() - expected.float()).abs().mean().item() < 0.02


@pytest.mark.parametrize('sides', [(2000, 1500), (1000, 1500)])
def test_pixels_of_a_scaled_decode_are_close(tmp_path, monkeypatch, torch_draws, sides):
    path, (width, height) = save(tmp_path / 'photo.jpg', sides), sides
    image, shapes = Image.open(path).convert('RGB'), []
    decode = PendingJPEG.decode
    monkeypatch.setattr(PendingJPEG, 'decode', lambda self, least: shapes.append(decode(self, least)) or shapes[-1])
    for seed in range(8):
        found = ours(path, 224, seed).float()
        assert (found - by_torchvision(path, 224, seed).float()).abs().mean().item() < 8  # of 255; docs/performance.md
        down, across = shapes[-1].shape[1] / height, shapes[-1].shape[2] / width
        assert down <= 0.5 and across <= 0.5
        torch.manual_seed(seed)
        y, x, h, w = transforms.RandomResizedCrop.get_params(image, (0.67, 1.0), (3 / 4, 4 / 3))
        flipped = torch.rand(1).item() < 0.5
        # The same crop, its edges at the pixels of the smaller image, cut out of the large one.
        box = [round(x * across) / across, round(y * down) / down]
        box += [round((x + w) * across) / across, round((y + h) * down) / down]
        box = [min(side, limit) for side, limit in zip(box, (width, height) * 2)]
        expected = np.array(image.resize((224, 224), Image.Resampling.BILINEAR, box=box))
        expected = expected[:, ::-1] if flipped else expected
        assert np.abs(found.numpy() - expected.transpose(2, 0, 1)).mean() < 1.5  # of 255


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'nearest'])
@pytest.mark.parametrize(('channels', 'dtype'), [(3, 'uint8'), (1, 'uint8'), (5, 'float32')])
def test_crops_and_flips_of_tensors_are_torchvisions(torch_draws, channels, dtype, interpolation):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (channels, 90, 120)).astype(dtype))
    size, mode = (32, 48), transforms.InterpolationMode(interpolation)
    theirs = [
        transforms.RandomResizedCrop(size, scale=(0.67, 1.0), interpolation=mode),
        transforms.RandomHorizontalFlip(),
    ]
    for rows in (image, image.permute(1, 2, 0).contiguous().permute(2, 0, 1)):  # planes; channels last
        for seed in range(6):
            torch.manual_seed(seed)
            expected = transforms.Compose(theirs)(image)
            torch.manual_seed(seed)
            sample = RandomResizedCrop(size, interpolation=interpolation)({'img': rows})
            found = PackSimMIMInputs()(RandomHorizontalFlip()(sample))['inputs']
            assert found.dtype == image.dtype and found.is_contiguous()
            assert (found.float() - expected.float()).abs().max() <= (
                2 if dtype == 'uint8' else 1e-3
            )  # rounding between axes


@pytest.mark.parametrize(
    ('size', 'scale', 'ratio'),
    [
        ((375, 500), (0.67, 1.0), (3 / 4, 4 / 3)),
        ((375, 500), (0.05, 0.5), (0.2, 5.0)),  # not every try fits
        ((30, 500), (0.9, 1.0), (3 / 4, 4 / 3)),  # none does: the largest in the middle
        ((500, 30), (0.9, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_regions_are_torchvisions(torch_draws, size, scale, ratio):
    image, ours = torch.empty(1, *size), RandomResizedCrop(32, scale, ratio)
    for seed in range(200):
        torch.manual_seed(seed)
        expected = transforms.RandomResizedCrop.get_params(image, list(scale), list(ratio))
        torch.manual_seed(seed)
        assert ours._region(*size) == tuple(expected), seed


def test_pythons_random_numbers_give_the_same_distribution():
    random.seed(0)
    torch.manual_seed(0)
    image, ours = torch.empty(1, 375, 500), RandomResizedCrop(224)
    drawn = np.array([ours._region(375, 500) for _ in range(4000)])
    expected = [transforms.RandomResizedCrop.get_params(image, (0.67, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    for ours_of, theirs_of in zip(drawn.T, np.array(expected).T):  # top, left, height, width
        assert ks_2samp(ours_of, theirs_of).pvalue > 1e-3
    flips = sum(
        RandomHorizontalFlip(0.3)({'img': torch.tensor([[[0, 1]]])})['img'][0, 0, 0].item() for _ in range(4000)
    )
    assert abs(flips / 4000 - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_decoded_images_are_never_smaller_than_the_crop_needs(tmp_path):
    path = save(tmp_path / 'photo.jpg', (640, 480))
    for least in ((1, 1), (100, 130), (239, 320), (240, 320), (240, 321), (480, 640), (600, 600)):
        image = pending_jpeg(path).decode(least)
        assert image.shape[1] >= min(least[0], 480) and image.shape[2] >= min(least[1], 640)
    assert pending_jpeg(path).decode((240, 320)).shape == (3, 240, 320)
    assert pending_jpeg(path).decode((240, 321)).shape == (3, 480, 640)
    assert least_size((480, 640), (240, 320), (224, 224)) == (448, 448)


def test_a_scaled_crop_never_has_fewer_pixels_than_its_target():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        side = int(rng.integers(600, 3000))
        length = int(rng.integers(450, side + 1))
        start = int(rng.integers(0, side - length + 1))
        decoded = -(-side * int(rng.integers(1, 5)) // 8)
        if decoded < -(-224 * side // length):
            continue  # it would be decoded larger
        first, found = _scaled(start, length, decoded / side, 224)
        assert found >= 224 and first >= 0 and first + found <= decoded
        assert abs(first - start * decoded / side) <= 1.5


def test_what_needs_more_than_decoding_is_read_at_full_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    turned = save(tmp_path / 'turned.jpg', (120, 80), exif=exif)
    assert pending_jpeg(turned) is None
    assert LoadImage(defer=True)({'img_path': turned})['img'].shape == (3, 120, 80)
    exif[0x0112] = 1
    assert pending_jpeg(save(tmp_path / 'upright.jpg', (120, 80), exif=exif)).size == (80, 120)
    plain = Path(save(tmp_path / 'plain.jpg', (120, 80))).read_bytes()
    late = plain[:2] + 2 * (b'\xff\xed\xff\xff' + bytes(0xFFFD)) + Path(turned).read_bytes()[2:]
    (tmp_path / 'late.jpg').write_bytes(late)  # EXIF behind 128 KiB of other data
    assert pending_jpeg(tmp_path / 'late.jpg') is None
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    segment = b'\xff\xe1' + (len(xmp) + 2).to_bytes(2, 'big') + xmp
    (tmp_path / 'xmp.jpg').write_bytes(plain[:2] + segment + plain[2:])
    assert LoadImage(defer=True)({'img_path': str(tmp_path / 'xmp.jpg')})['img'].shape == (3, 120, 80)
    Image.new('CMYK', (40, 30)).save(tmp_path / 'cmyk.jpg')
    assert pending_jpeg(tmp_path / 'cmyk.jpg') is None
    Image.new('L', (40, 30), 77).save(tmp_path / 'grey.jpg')
    assert ours(str(tmp_path / 'grey.jpg'), 16, 0).unique().tolist() == [77]
    for loader in (LoadImage(1, defer=True), LoadImage(dtype='float32', defer=True), LoadImage(keep=1, defer=True)):
        assert isinstance(loader({'img_path': str(tmp_path / 'grey.jpg')})['img'], torch.Tensor)


def test_decoding_is_not_deferred_if_another_transform_follows(image_folder):
    dataset = ImageFolder(str(image_folder), [LoadImage(defer=True), lambda sample: sample['img'].shape])
    assert dataset[0] == (3, 72, 80)
    dataset = ImageFolder(str(image_folder), [LoadImage(defer=True), RandomResizedCrop(32)])
    assert dataset.pipeline.transforms[0].defer and dataset[0]['img'].shape == (3, 32, 32)


def test_damaged_files_are_image_read_errors(tmp_path):
    full = io.BytesIO()
    Image.fromarray(astronaut()).save(full, 'JPEG')
    (tmp_path / 'cut.jpg').write_bytes(full.getvalue()[:9000])
    (tmp_path / 'text.jpg').write_text('no image')
    for name in ('cut.jpg', 'text.jpg', 'missing.jpg'):
        with pytest.raises(ImageReadError, match=name):
            ours(str(tmp_path / name), 32, 0)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(dict(size=0), 'size=0 must be one side or'), (dict(size=224.0), 'size=224.0 must be one side or'),
     (dict(size=32, scale=(0.5, 2)), r'scale=\(0.5, 2\) must be two shares of the area in \(0, 1\]'),
     (dict(size=32, scale=0.5), r'scale=0.5 must be two shares'), (dict(size=32, scale=(0.5,)), 'must be two shares'),
     (dict(size=32, ratio=(2, 1)), r'ratio=\(2, 1\) must be two positive numbers, .* the smaller one first'),
     (dict(size=32, ratio=(0.5, float('nan'))), 'nan. must be two positive numbers'),
     (dict(size=32, interpolation='cubic'), "interpolation='cubic'")],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(**arguments)


def test_a_bad_probability_is_named():
    with pytest.raises(
        ValueError, match=r'RandomHorizontalFlip.p=50 must be a number in \[0, 1\]; 0.5 flips every other image'
    ):
        RandomHorizontalFlip(50)
