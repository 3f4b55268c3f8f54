"""The ViT of simmim_vit-tiny_folder.py for detectors and segmenters: windows of 8 x 8 tokens, as in pretraining."""

vit_tiny = dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768)
vit_tiny_grid = dict(img_size=64, patch_size=8, window_size=8, global_blocks=(2, 5))
