"""From a file to a sample: read, crop, flip, mask, pack."""

from simmim_plugin.datasets.transforms import crop, loading, masking  # noqa: F401 (registered)
