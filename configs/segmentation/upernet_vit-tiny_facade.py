"""The small UPerNet on facades, 512 px, eleven classes with the background: set `data_root`.

Source:   upernet_vit-tiny_folder.py; the data is https://github.com/a-hwang/building-facade-segmentation (CC BY 4.0),
          its polygons painted large to small into masks.
Command:  python tools/train.py configs/segmentation/upernet_vit-tiny_facade.py --cfg-options data_root=/path/to/facade
Cost:     35 minutes on one of two cores of an AMD EPYC, bfloat16 (2026-11-26).
Expected: mIoU 25.0 and 25.2 from scratch, 24.1 and 24.3 pretrained (randomness.seed=0 and 1, --amp); docs/results.md.
"""

_base_ = 'upernet_vit-tiny_folder.py'

classes = [
    'background', 'balcony-fence', 'car', 'facade', 'fence', 'non-building-infrastructure', 'shop', 'street',
    'traffic-infrastructure', 'vegetation', 'window',
]  # fmt: skip
