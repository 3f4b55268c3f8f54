import json

import pytest
from mmengine.config import ConfigDict

from simmim_plugin.datasets.class_names import class_names, fill_in_classes


@pytest.fixture
def coco(tmp_path):
    for part, names in (('train', ('window', 'door')), ('valid', ('window', 'door')), ('other', ('window',))):
        categories = [dict(id=3 + 2 * i, name=name) for i, name in enumerate(names)]
        (tmp_path / f'{part}.json').write_text(json.dumps(dict(images=[], annotations=[], categories=categories)))
    return tmp_path


def dataset(root, ann_file, **more) -> ConfigDict:
    return ConfigDict(type='CocoDataset', data_root=str(root), ann_file=ann_file, data_prefix=dict(img=''), **more)


def test_categories_of_coco_in_the_order_of_the_file(coco):
    assert class_names(dataset(coco, 'train.json')) == ['window', 'door']
    assert class_names(dataset(coco, 'train.json', metainfo=dict(classes=('a', 'b', 'c')))) == ['a', 'b', 'c']


def test_lines_next_to_masks(tmp_path):
    data = ConfigDict(data_root=str(tmp_path), data_prefix=dict(img_path='images', seg_map_path='masks'))
    with pytest.raises(
        FileNotFoundError, match=r"classes.txt' does not exist; data_root must have it: the classes' name"
    ):
        class_names(data)
    (tmp_path / 'classes.txt').write_text('background\nroof, red\n\n')
    assert class_names(data) == ['background', 'roof, red']
    (tmp_path / 'classes.txt').write_text('\n')
    with pytest.raises(ValueError, match=r"classes.txt' names no classes"):
        class_names(data)


def test_every_head_and_data_set_is_filled_in(coco):
    model = ConfigDict(heads=[dict(num_classes=None), dict(mask=dict(num_classes=None))], other=dict(num_classes=2))
    data = [dataset(coco, f'{part}.json', metainfo=None) for part in ('train', 'valid')]
    assert fill_in_classes(model, data) == 2
    assert model == dict(heads=[dict(num_classes=2), dict(mask=dict(num_classes=2))], other=dict(num_classes=2))
    assert all(d.metainfo == dict(classes=['window', 'door']) for d in data)
    assert fill_in_classes(model, data) == 0  # nothing is left to do


@pytest.mark.parametrize(
    ('model', 'files', 'message'),
    [
        (
            dict(head=dict(num_classes=80)),
            ('train', 'valid'),
            r"model.head.num_classes=80, but .*train.json' has 2 clas",
        ),
        (
            dict(head=dict(num_classes=None)),
            ('train', 'other'),
            r"other.json' must have the classes window, door as in",
        ),
        (dict(head=dict(num_classes=None)), ('missing', 'valid'), r"missing.json' does not exist; data_root must have"),
    ],
)
def test_what_does_not_fit_is_named(coco, model, files, message):
    data = [dataset(coco, f'{part}.json', metainfo=None) for part in files]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fill_in_classes(ConfigDict(model), data)
    assert data[0].metainfo is None


def test_json_of_openmmlab_names_its_classes(tmp_path):
    content = dict(metainfo=dict(classes=['cat', 'dog']), data_list=[dict(img_path='a.jpg', gt_label=1)])
    (tmp_path / 'train.json').write_text(json.dumps(content))
    assert class_names(dataset(tmp_path, 'train.json')) == ['cat', 'dog']
    (tmp_path / 'train.json').write_text('{"metainfo": ')
    with pytest.raises(ValueError, match=r"train.json' is damaged, or no JSON file"):
        class_names(dataset(tmp_path, 'train.json'))
    (tmp_path / 'train.json').write_text('[1]')
    with pytest.raises(ValueError, match=r"train.json' holds a list, not a dict"):
        class_names(dataset(tmp_path, 'train.json'))
