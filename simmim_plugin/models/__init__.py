"""SimMIM in six files. Read in this order.

1. simmim.py: the model: what is predicted, from what.
2. masks.py: what is hidden.
3. head.py: from patch features to pixels and the loss.
4. targets.py: what may be predicted instead of pixels.
5. losses.py: how prediction and image are compared.
6. vit.py: the backbone; its parts are in layers/. What any backbone must have is in interface.py; masked_backbone.py
   masks those of other libraries, which libraries.py builds and reads.

One convention throughout: a mask is (B, h, w) over the patches, 1 = masked.
"""
