"""What SGLang and transformers want on a CPU and no package has there, on the path of its processes."""
