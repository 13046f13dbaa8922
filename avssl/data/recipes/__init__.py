"""Published data sets as manifests: what the scripts of datasets/ call."""
