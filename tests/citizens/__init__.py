"""The networks of the proofs, one family a file."""
