"""``python -m skimattn``."""

from .tools.cli import main

if __name__ == "__main__":
    main(prog_name="python -m skimattn")
