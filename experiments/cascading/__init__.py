"""Parts of `experiments.cascade_ranking`: the items, the networks, what came out."""
