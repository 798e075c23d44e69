"""`ms.jit`, and the forms of convolutions, sums and poolings that are fast on CPU."""
