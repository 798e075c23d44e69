"""What `experiments.benchmarks.vs_servers` compares with, and how."""
