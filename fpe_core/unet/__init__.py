"""How the algorithm is made fast: the UNet as a function of tensors, rows, kernels, graphs."""
