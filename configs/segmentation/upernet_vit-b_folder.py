"""UPerNet with a ViT-B on your own masks: set `data_root`.

`data_root` has images/train, images/valid (.jpg) and masks/train, masks/valid (.png of the same names, whose values are
class numbers, 255 = ignored), and classes.txt: the names of the classes, one per line, the first for the value 0. Or
set `classes` to the list of names.

Source:   upernet_vit-b_ade20k.py; 40,000 iterations on one GPU, for few images.
Command:  python tools/train.py configs/segmentation/upernet_vit-b_folder.py --cfg-options data_root=/path/to/data \
              load_from=vit-b.pth
"""

_base_ = 'upernet_vit-b_ade20k.py'

data_root = None
classes = None
model = dict(decode_head=dict(num_classes=None), auxiliary_head=dict(num_classes=None))
annotations = dict(reduce_zero_label=False)
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        type='BaseSegDataset',
        metainfo=None,
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='BaseSegDataset',
        metainfo=None,
        data_prefix=dict(img_path='images/valid', seg_map_path='masks/valid'),
    )
)
test_dataloader = val_dataloader
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=40000),
]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
