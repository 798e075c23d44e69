"""`ms.jit`, and the forms of convolutions, poolings and loops that are fast on CPU."""
