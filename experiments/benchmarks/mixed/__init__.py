"""What the mixed load of `experiments.benchmarks.mixed_load` is made of."""
