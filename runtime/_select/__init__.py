"""Which kernel computes a call, where kernels are found, and what exists."""
