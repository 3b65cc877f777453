"""Links to other projects without a network: the few names that we link to lie in _inventories.

Each file begins with the address of a project's documentation; a line is a name, what it is, and
its page ("$" stands for the name). They become inventories, which intersphinx reads from disk.
"""

from __future__ import annotations

import zlib
from pathlib import Path


def write_inventories(source: Path, target: Path) -> dict[str, tuple[str, str]]:
    """Write one inventory per text file; return the value of intersphinx_mapping."""
    target.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for file in sorted(source.glob("*.txt")):
        head, *lines = file.read_text().splitlines()
        entries = []
        for name, kind, page in (line.split() for line in lines):
            entries.append(f"{name} {kind} 1 {page} -\n")
        inventory = target / f"{file.stem}.inv"
        inventory.write_bytes(
            b"# Sphinx inventory version 2\n"
            + f"# Project: {file.stem}\n# Version: stable\n".encode()
            + b"# The remainder of this file is compressed using zlib.\n"
            + zlib.compress("".join(entries).encode())
        )
        mapping[file.stem] = (head.removeprefix("# "), str(inventory))
    return mapping
