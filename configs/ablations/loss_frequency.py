"""L1 plus 0.1 x focal frequency loss, after A2MIM.

Source:   arXiv 2205.13943 (A2MIM), arXiv 2012.12821 (the loss).
Command:  python tools/ablate.py configs/ablations/loss_frequency.py --data-root /path/to/data
"""

_base_ = '../simmim_vit-b.py'

model = dict(head=dict(loss=dict(frequency_weight=0.1)))
