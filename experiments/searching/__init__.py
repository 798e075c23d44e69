"""Parts of `experiments.search_widths`: images, the training, what came out."""
