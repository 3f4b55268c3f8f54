"""Checkpoints that would give wrong weights, fill the memory, or keep a program busy for ever."""

import json
import resource
import struct
import zipfile

import pytest
import torch

from helpers.models import TINY
from simmim_plugin import SimMIM
from simmim_plugin.checkpoints.convert import convert_file
from simmim_plugin.checkpoints.files import load_file, tensors_of
from simmim_plugin.checkpoints.loading import build_backbone, load_pretrained
from simmim_plugin.checkpoints.saved import read

pytestmark = [pytest.mark.core, pytest.mark.timeout(30)]


@pytest.fixture
def model():
    return SimMIM(backbone=TINY)


def note(**changes) -> dict:
    return dict(model=dict(type='SimMIM', backbone=dict(TINY, **changes)), pipeline=[])


def rezip(source, target, compression=zipfile.ZIP_DEFLATED, **replaced: bytes) -> None:
    """Copy the members of a zip file, some with other bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w', compression) as new:
        for name in old.namelist():
            data = replaced.get(name.split('/')[1].replace('.', '_'), old.read(name))
            new.writestr(name, data)


def test_compressed_members_are_refused_and_stored_ones_read(tmp_path, model):
    """PyTorch maps the file into memory, and took the compressed bytes for weights."""
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    rezip(tmp_path / 'a.pth', tmp_path / 'deflated.pth')
    with pytest.raises(ValueError, match=r"deflated.pth' cannot be read: its members are compressed.* zip -0 -r"):
        load_file(tmp_path / 'deflated.pth')
    rezip(tmp_path / 'a.pth', tmp_path / 'stored.pth', zipfile.ZIP_STORED)
    for name, value in load_file(tmp_path / 'stored.pth')['state_dict'].items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize('member', ['data_pkl', 'version'])
def test_a_zip_bomb_takes_no_memory(tmp_path, model, member):
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    rezip(tmp_path / 'a.pth', tmp_path / 'bomb.pth', **{member: bytes(300 << 20)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, with the 300 MiB above
    with pytest.raises(ValueError, match=r"bomb.pth' cannot be read: its members are compressed"):
        load_file(tmp_path / 'bomb.pth')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


def test_a_directory_that_claims_more_than_the_file_holds(tmp_path, model):
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    data = bytearray((tmp_path / 'a.pth').read_bytes())
    entry = data.rindex(b'PK\x01\x02')  # the last entry of the central directory
    data[entry + 20 : entry + 28] = struct.pack('<II', 1 << 31, 1 << 31)  # compressed and real size
    (tmp_path / 'b.pth').write_bytes(data)
    with pytest.raises(ValueError, match=r"b.pth' cannot be read: it is damaged"):
        load_file(tmp_path / 'b.pth')


def endless() -> dict:
    content: dict = {'w': torch.zeros(1)}
    content['state_dict'] = content
    return content


def doubling() -> list:
    value: list = [1]
    for _ in range(60):  # 2^60 numbers, in 2 kB
        value = [value, value]
    return value


def deep() -> list:
    value: list = []
    for _ in range(200):
        value = [value]
    return value


@pytest.mark.parametrize(
    'content',
    [
        endless(),
        {'state_dict': {'w': torch.zeros(1)}, 'meta': doubling()},
        {'state_dict': {'w': torch.zeros(1)}, 'simmim_plugin': dict(model=doubling())},
        {'state_dict': {'w': torch.zeros(1)}, 'meta': deep()},
    ],
    ids=['endless', 'doubling', 'doubling config', 'deep'],
)
def test_what_has_no_end_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"a.pth' cannot be read: (it is nested more than|it holds more than)"):
        load_file(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='cannot be read'):
        convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth', 'plugin')


def test_a_state_dict_in_itself_ends(tmp_path):
    with pytest.raises(ValueError, match='holds no state dict'):
        tensors_of(endless())


def test_a_deep_note_of_a_safetensors_file(tmp_path):
    header = json.dumps({'__metadata__': {'simmim_plugin': '[' * 100_000}}).encode()
    (tmp_path / 'a.safetensors').write_bytes(struct.pack('<Q', len(header)) + header)
    with pytest.raises(ValueError, match=r"a.safetensors' cannot be read"):
        load_file(tmp_path / 'a.safetensors')


def test_a_tensor_larger_than_its_data(tmp_path, model):
    """Every number of it is the same: 4 EB in 4 bytes."""
    state = {**model.state_dict(), 'backbone.cls_token': torch.zeros(1).expand(10**9, 10**9)}
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r"a.pth': backbone.cls_token has more values than the file holds"):
        read(tmp_path / 'a.pth')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(arch={**TINY['arch'], 'num_layers': 10**9}), r'arch.num_layers=1000000000 must be .* from 1 to 1024'),
        (dict(arch={**TINY['arch'], 'embed_dims': 4 * 10**9}), 'arch.embed_dims=4000000000 must be'),
        (dict(arch={**TINY['arch'], 'embed_dims': 65536}), 'of another architecture'),
        (dict(arch={**TINY['arch'], 'feedforward_channels': 1 << 20}), 'of another architecture'),
        (dict(img_size=160_000), 'rows, which a grid of 10000 x 10000 patches does not have'),
        (dict(in_channels=10**7), 'for images of 3 channels and the model for 10000000'),
        (dict(patch_size=4096, img_size=4096 * 4), 'the checkpoint has patches of 16 x 16 px and the model of 4096'),
    ],
)
def test_numbers_of_a_config_are_compared_with_the_weights_before_they_are_built(tmp_path, model, changes, message):
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': note(**changes)}, tmp_path / 'a.pth')
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for use in (lambda: load_pretrained(tmp_path / 'a.pth'), lambda: build_backbone(read(tmp_path / 'a.pth'))):
        with pytest.raises(ValueError, match=f'{message}|of another architecture'):
            use()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit < 200 << 10


def test_a_head_without_end(tmp_path, model):
    content = note()
    content['model']['head'] = dict(type='SimMIMHead', num_layers=10**9)
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': content}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'SimMIMHead.num_layers=1000000000 must be .* from 1 to'):
        load_pretrained(tmp_path / 'a.pth')


def test_a_rebuilt_model_is_whole(tmp_path, model):
    """Compared on a device without memory first, then built on the real one."""
    torch.save({'state_dict': model.state_dict(), 'simmim_plugin': note()}, tmp_path / 'a.pth')
    built, _ = load_pretrained(tmp_path / 'a.pth')
    for part in (built, build_backbone(read(tmp_path / 'a.pth'), img_size=96)):
        assert not any(tensor.is_meta for tensor in (*part.parameters(), *part.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), model.parameters(), strict=True))
