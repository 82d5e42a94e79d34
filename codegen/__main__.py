"""``python -m skimattn.codegen``: the command line of ``build.py``, for installed packages."""

from .cli import main

main()
