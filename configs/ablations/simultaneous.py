"""Simultaneous masking as in its document: local and global masks, squared error of all pixels.

Source:   the document on simultaneous masking, see docs/masking.md.
Command:  python tools/ablate.py configs/ablations/simultaneous.py --data-root /path/to/data
"""

_base_ = 'mask_simultaneous.py'

model = dict(head=dict(loss=dict(criterion='l2', scope='all')))
