"""What the kernels compute, in plain torch on the CPU."""
