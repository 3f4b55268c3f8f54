"""Mask R-CNN with a ViT-B on your own data in COCO's format: set `data_root`.

`data_root` has annotations/train.json and annotations/valid.json, and the images in images/train and images/valid. The
classes are those of train.json.

Source:   mask-rcnn_vit-b_coco.py; jitter from 0.5, for few small images.
Command:  python tools/train.py configs/detection/mask-rcnn_vit-b_folder.py --cfg-options data_root=/path/to/data \
              load_from=vit-b.pth
"""

_base_ = 'mask-rcnn_vit-b_coco.py'

data_root = None
model = dict(roi_head=dict(bbox_head=dict(num_classes=None), mask_head=dict(num_classes=None)))
jitter = dict(ratio_range=(0.5, 2.0))
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    dataset=dict(
        metainfo=None,  # the classes of the annotations
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=1),
    ),
)
val_dataloader = dict(
    dataset=dict(metainfo=None, ann_file='annotations/valid.json', data_prefix=dict(img='images/valid/'))
)
test_dataloader = val_dataloader
