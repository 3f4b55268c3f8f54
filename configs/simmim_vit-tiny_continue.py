"""Continue pretraining from weights of a small ViT at 64 px, on your own folder: set `data_root` and `load_from`.

Source:   configs/simmim_vit-b_continue.py at the size of configs/simmim_vit-tiny_folder.py, with a third of its rate.
Command:  python tools/train.py configs/simmim_vit-tiny_continue.py \
              --cfg-options data_root=/path/to/images load_from=/path/to/weights.pth
Expected: not measured yet.
"""

_base_ = 'simmim_vit-tiny_folder.py'

data_root = 'data/images'
load_from = None

# Layer l of 8 gets 0.8^(7 - l) of the rate, from 21 % on.
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(layer_decay_rate=0.8))
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.005, end=3, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=3, end=30, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
