"""UPerNet with a ViT-B on ADE20K, 512 px.

Source:   see _base_/runtime.py.
Command:  tools/dist_train.sh configs/segmentation/upernet_vit-b_ade20k.py 8 --cfg-options data_root=/path/to/ade20k \
              load_from=vit-b.pth      (8 x 2 images)
"""

_base_ = ['_base_/runtime.py', '_base_/ade20k_512px.py', '_base_/upernet.py']
