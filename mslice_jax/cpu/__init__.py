"""`ms.jit`, and the forms of convolutions and poolings that are fast on CPU."""
