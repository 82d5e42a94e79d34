"""``python -m bench texts MODEL NAME=FOLDER...``: a token file for ``bench models``, with the tokenizer of a model.

All texts below a folder (.txt, .rst, packed with gzip or not) are used in an order that mixes them, every fifth for
calibration and the others for what is measured, each paragraph once; and texts with needles are made up.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from . import models_texts

_SUFFIXES = (".txt", ".rst", ".txt.gz", ".rst.gz")


def files_of(folder: Path, least: int) -> list[Path]:
    """Texts below a folder that have so many bytes, mixed; ``ValueError`` if there are none."""
    found = sorted(path for path in folder.rglob("*") if path.name.endswith(_SUFFIXES) and path.is_file())
    found = [path for path in found if path.stat().st_size >= least]
    if not found:
        raise ValueError(f"{folder}: expected texts ({', '.join(_SUFFIXES)}) of {least} bytes or more (got none)")
    random.Random(0).shuffle(found)
    return found


def main(arguments: Sequence[str]) -> int:
    """Write the file. Exit status 1, and what is wrong, if that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m bench texts", description=__doc__)
    parser.add_argument("model", help="whose tokenizer it is")
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--length", type=int, required=True, help="tokens of texts with needles")
    parser.add_argument("--needles", type=int, default=40, help="texts with needles")
    parser.add_argument("--tokens", nargs=2, type=int, required=True, help="of each kind: calibration, evaluation")
    parser.add_argument("--least", type=int, default=4096, help="bytes of a file that is used")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        named = [text.partition("=") for text in options.folders]
        files = {name: files_of(Path(folder), options.least) for name, _, folder in named}
        from skimattn.integrations.transformers import load

        loaded = load(options.model)
        texts = models_texts.make(
            files,
            loaded.encode,
            loaded.tokenizer.decode,
            loaded.beginning,
            tokens=tuple(options.tokens),
            length=options.length,
            needles=options.needles,
        )
        models_texts.save(texts, options.out)
    except (OSError, ValueError) as error:
        print(f"bench texts: {error}", file=sys.stderr)
        return 1
    for (name, use), stream in texts.streams.items():
        print(f"{name}, {use}: {len(stream)} tokens")
    return 0
