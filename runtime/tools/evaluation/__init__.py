"""Benchmarks of long texts through lm-eval: a model dense, beside itself at each share that it is to skip."""
