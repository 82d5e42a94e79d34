"""Result files: one JSON document per run, small, complete, and rewritten after every case."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT = 1
KINDS = ("prefill", "rows", "decode", "ragged", "host", "build", "skip", "statlog", "models", "serve")
RESULTS = Path(__file__).resolve().parent / "results"


def new_document(kind: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The head of a result file: what was run and when (UTC)."""
    command = shlex.join(["python", "-m", "bench", kind, *arguments])
    return {"format": FORMAT, "kind": kind, "command": command, "started": _now(), "finished": None}


def finish(document: dict[str, Any]) -> None:
    """Mark the run as complete."""
    document["finished"] = _now()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def place(folder: Path, document: dict[str, Any], subject: str) -> Path:
    """Where the file of a run goes: ``FOLDER/KIND-SUBJECT-TIME.json``."""
    slug = re.sub(r"[^a-z0-9]+", "-", subject.lower()).strip("-")
    stamp = re.sub(r"[-:]", "", document["started"].partition("+")[0])
    return folder / f"{document['kind']}-{slug}-{stamp}.json"


def save(document: dict[str, Any], path: Path) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(
        json.dumps(document, indent=None, separators=(",", ":")).replace('{"case"', '\n{"case"') + "\n"
    )
    os.replace(temporary, path)


def load(path: Path) -> dict[str, Any]:
    """Read a result file; ``ValueError`` says what is wrong with it."""
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("kind") not in KINDS:
        raise ValueError(f"{path}: expected a result file of python -m bench")
    if document.get("format") != FORMAT:
        raise ValueError(f"{path}: format: expected {FORMAT} (got {document.get('format')})")
    return document
