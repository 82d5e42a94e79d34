"""The call as an operator of torch, for compilers that trace it rather than run it."""
