"""A translation unit: one rendered source with the headers it includes, directly or not, and its content key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"](skimattn/[^>"\n]+)[>"]', re.MULTILINE)

Resolver = Callable[[str], str | None]  # "skimattn/params.cuh" -> its text, None if there is no such header


@dataclass(frozen=True)
class Closure:
    """Every header that a source reaches: include name to text, in the order of the names."""

    texts: dict[str, str]

    @cached_property
    def sha256(self) -> str:
        """Hash of names and texts."""
        return _digest(*(part for item in self.texts.items() for part in item))


@dataclass(frozen=True)
class Unit:
    """What one compiler run reads."""

    name: str
    arch: str
    source: str
    closure: Closure

    @cached_property
    def source_sha256(self) -> str:
        """Hash of everything that is compiled: the source and all its headers."""
        return _digest(self.name, self.source, self.closure.sha256)


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
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
        self._closures: dict[tuple[str, ...], Closure] = {}

    def _lookup(self, name: str) -> tuple[str, list[str]] | None:
        if name not in self._known:
            text = self._resolve(name)
            self._known[name] = None if text is None else (text, includes_of(text))
        return self._known[name]

    def closure(self, source: str) -> Closure:
        """Every header that ``source`` reaches. A missing one is left to the compiler to report."""
        roots = tuple(includes_of(source))
        if roots not in self._closures:
            self._closures[roots] = self._reach(roots)
        return self._closures[roots]

    def _reach(self, roots: tuple[str, ...]) -> Closure:
        found: dict[str, str] = {}
        pending = list(roots)
        while pending:
            name = pending.pop()
            if name in found or (entry := self._lookup(name)) is None:
                continue
            found[name] = entry[0]
            pending += entry[1]
        return Closure(dict(sorted(found.items())))

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
    return _digest(source_sha256, toolchain_id, *options, "allow", *allowed)
