"""Features of a frozen ViT-B/16 in place of pixels, each token normalised; smooth L1.

Weights of the teacher, here DINO's (normalised images as in the base):
simmim convert timm:vit_base_patch16_224.dino work_dirs/teacher.pth --to plugin

Source:   arXiv 2210.10615 (MaskDistill); EVA (arXiv 2211.07636) and MILAN (2208.06049) take criterion='cosine'.
Command:  python tools/ablate.py configs/ablations/target_features.py --data-root /path/to/data --size none \
              --finetune configs/finetune/vit-b_folder.py
Expected: not measured yet.
"""

_base_ = '../simmim_vit-b.py'

ordinary = dict(use_abs_pos_embed=True, use_shared_rel_pos_bias=False, layer_scale_init_value=0.0)
teacher = dict(type='SimMIMViT', **ordinary, init_cfg=dict(type='Pretrained', checkpoint='work_dirs/teacher.pth'))
model = dict(head=dict(target=dict(type='features', teacher=teacher), loss=dict(criterion='smooth_l1')))
