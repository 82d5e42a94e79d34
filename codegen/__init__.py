"""Which kernels exist, their sources, and the build: tables in, cubins and metadata out."""
