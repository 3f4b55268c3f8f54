"""HOG, ViT-B/16 at 128 px without its last three blocks, ImageNet-1k, 800 epochs: a quarter of the computation.

Fine-tune with configs/finetune/vit-b_128px_in1k.py: at 224 px, with all 12 blocks.

Source:   FastMIM (arXiv 2212.06593): small images, HOG in place of pixels, and a pretraining without the last blocks,
          which are new in fine-tuning. The number of blocks left out is ours.
Command:  tools/dist_train.sh configs/simmim_vit-b_128px.py 8          (8 x 256 = total batch 2048)
Cost:     25.4 GFLOP per image, forward and backward: 0.240 of the 105.8 of simmim_vit-b.py (PyTorch's FlopCounterMode).
"""

_base_ = 'simmim_vit-b.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=768, num_layers=9, num_heads=12, feedforward_channels=3072), img_size=128
    ),
    head=dict(target='hog', loss=dict(criterion='l2')),
)
crop = dict(size=128)  # units stay 32 px: 10 of 16 are hidden
