"""Images: folders, tar shards, sampling."""
