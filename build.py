"""Builds the kernels: ``python build.py --sm 90``. See ``python build.py --help``."""

import sys

try:
    from skimattn.codegen.cli import main
except ModuleNotFoundError as missing:
    sys.exit(f"build.py needs the package of this folder and what it depends on: pip install -e .  ({missing})")

if __name__ == "__main__":
    main()
