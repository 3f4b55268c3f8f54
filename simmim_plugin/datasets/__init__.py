"""Images: folders, tar shards, sampling."""

from simmim_plugin.datasets import few_labels, image_folder, tar_shards  # noqa: F401 (registered)
