"""Random networks, and the proofs that each of them has to pass."""
