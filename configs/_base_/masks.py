"""Named masks for patches of 16 px, shown in docs/masking.md.

A leaf selects one by mask = dict(_delete_=True, **_base_.masks.simultaneous).
"""

masks = dict(
    # Published SimMIM (arXiv 2111.09886): 30 of the 49 units of a 224 px image.
    simmim=dict(type='SimMIMMaskGenerator', mask_ratio=0.6, mask_patch_size=32, model_patch_size=16),
    # A local and a global mask at once, with the ratios of the document on simultaneous masking.
    simultaneous=dict(
        type='SimMIMMaskGenerator',
        local=dict(ratio=0.75, unit=32),
        global_=dict(ratio=0.1, unit=64),
        model_patch_size=16,
    ),
    # Single tokens, with the ratio of MAE (arXiv 2111.06377).
    random_tokens=dict(type='SimMIMMaskGenerator', mask_ratio=0.75, mask_patch_size=16, model_patch_size=16),
    # Rectangles, 75 of the 196 tokens, as in BEiT (arXiv 2106.08254). input_size is the token grid.
    blockwise=dict(type='mmpretrain.BEiTMaskGenerator', input_size=14, num_masking_patches=75, min_num_patches=16),
)
