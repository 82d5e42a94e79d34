"""A translation unit: one rendered source with the headers it includes, directly or not, and its content key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"](skimattn/[^>"\n]+)[>"]', re.MULTILINE)

Resolver = Callable[[str], str | None]  # "skimattn/params.cuh" -> its text, None if there is no such header


@dataclass(frozen=True)
class Unit:
    """What one compiler run reads. ``headers`` maps include names to texts, in the order of their names."""

    name: str
    arch: str
    source: str
    headers: dict[str, str]

    @property
    def source_sha256(self) -> str:
        """Hash of everything that is compiled: the source and all its headers."""
        digest = hashlib.sha256()
        for name, text in ((f"{self.name}.cu", self.source), *self.headers.items()):
            for part in (name, text):
                data = part.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def includes_of(text: str) -> list[str]:
    """The skimattn headers that ``text`` names, in order. Conditional ones count: the key may only err towards more."""
    return _INCLUDE.findall(text)


class Headers:
    """Resolves include names once each and remembers texts and includes, so that many units are cheap."""

    def __init__(self, resolve: Resolver) -> None:
        """Take texts from ``resolve``."""
        self._resolve = resolve
        self._known: dict[str, tuple[str, list[str]] | None] = {}

    def _lookup(self, name: str) -> tuple[str, list[str]] | None:
        if name not in self._known:
            text = self._resolve(name)
            self._known[name] = None if text is None else (text, includes_of(text))
        return self._known[name]

    def closure(self, source: str) -> dict[str, str]:
        """Every header that ``source`` reaches, sorted by name. A missing one is left to the compiler to report."""
        found: dict[str, str] = {}
        pending = includes_of(source)
        while pending:
            name = pending.pop()
            if name in found or (entry := self._lookup(name)) is None:
                continue
            found[name] = entry[0]
            pending += entry[1]
        return dict(sorted(found.items()))

    def unit(self, name: str, arch: str, source: str) -> Unit:
        """The unit of ``source``."""
        return Unit(name, arch, source, self.closure(source))


def from_folders(roots: Iterable[Path]) -> Resolver:
    """Look headers up in ``roots``, first match wins."""
    folders = tuple(roots)

    def resolve(name: str) -> str | None:
        for folder in folders:
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8")
        return None

    return resolve


def content_key(source_sha256: str, toolchain_id: str, options: Iterable[str], allowed: Iterable[str]) -> str:
    """Identity of a build's result: what was compiled, by which compiler, how, and which findings were accepted."""
    parts = (source_sha256, toolchain_id, *options, "allow", *allowed)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
