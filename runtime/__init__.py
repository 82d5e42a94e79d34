"""skimattn: attention kernels that skim."""
