"""Continue pretraining from weights that exist, on your own folder: set `data_root` and `load_from`.

`load_from` is a file or folder of any kind that `simmim convert` knows, or `timm:NAME` or `hf:NAME`. The backbone must
be that of the weights; `simmim pretrain DATA --init CHECKPOINT` reads it from them and writes a leaf of this config.

Source:   the recipe of configs/simmim_vit-b.py with a lower rate, layer decay as in its fine-tuning, but weaker, and 50
          epochs with a cosine. Mask token, decoder and tables that the weights lack are new and have the full rate.
Command:  python tools/train.py configs/simmim_vit-b_continue.py \
              --cfg-options data_root=/path/to/images load_from=/path/to/weights.pth
Expected: not run here at this size.
"""

_base_ = 'simmim_vit-b_folder.py'

data_root = 'data/images'
load_from = None

# For batches as small as few images allow: 1e-4 for 256; layer l of 14 gets 0.85^(13 - l) of it, from 12 % on.
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(layer_decay_rate=0.85))
auto_scale_lr = dict(base_batch_size=256)
train_dataloader = dict(batch_size=64)
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=0.005, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=5, end=50, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=50)
