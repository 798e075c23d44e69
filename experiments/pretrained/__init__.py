"""Networks that come with their weights, for `experiments.upgrade_pretrained`."""
