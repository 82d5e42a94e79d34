"""What is to be skipped where: settings, the dialects that they come in, and which kernels they were found with."""
