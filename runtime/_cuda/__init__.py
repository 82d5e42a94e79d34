"""The CUDA driver, devices and streams."""
