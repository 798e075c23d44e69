"""Parts of `experiments.compare_schedules`: schemes, results, picture."""
