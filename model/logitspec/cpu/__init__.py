"""Kernels for a CPU: which there are, and the weights laid out for them."""
