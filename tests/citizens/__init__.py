"""The networks that tests put through the proofs, one family a file."""
