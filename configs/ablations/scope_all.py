"""L1 on all pixels; published: on masked ones, 82.8 against 81.7 % (Swin-B, 100 epochs).

Source:   arXiv 2111.09886, ablation of the loss.
Command:  python tools/ablate.py configs/ablations/scope_all.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

model = dict(head=dict(loss=dict(scope='all')))
