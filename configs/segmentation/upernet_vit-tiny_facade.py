"""The small UPerNet on fronts of buildings, 512 px, eleven classes with the background: set `data_root`.

Source:   upernet_vit-tiny_folder.py; the data is https://github.com/a-hwang/building-facade-segmentation (CC BY 4.0),
          its polygons painted large to small into masks.
Command:  python tools/train.py configs/segmentation/upernet_vit-tiny_facade.py --cfg-options data_root=/path/to/facade
Cost:     not measured.
Expected: from scratch mIoU 23.1 and 22.5 on valid (randomness.seed=0 and 1, --amp, 407 images to train on, 108 to
          evaluate; one core of an AMD EPYC each, 2026-11-26); pretrained not run to the end yet.
"""

_base_ = 'upernet_vit-tiny_folder.py'

classes = [
    'background', 'balcony-fence', 'car', 'facade', 'fence', 'non-building-infrastructure', 'shop', 'street',
    'traffic-infrastructure', 'vegetation', 'window',
]  # fmt: skip
