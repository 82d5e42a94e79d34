"""Commands that run a language model of transformers: calibrate, verify, sparsify, generate."""
