"""Kernel templates and headers, read through :mod:`importlib.resources`."""
