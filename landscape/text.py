"""Text from untrusted files, made printable, and the natural order of names."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["escape_name", "natural_key", "shown"]


def escape_name(text: str) -> str:
    r"""The printable form of a name from a file: control characters become ``\x1b`` and the like.

    Bidirectional overrides, line separators and lone surrogates are escaped too. Terminal mark-up
    is left to the caller.
    """
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which ``step_9`` comes before ``step_10``."""
    parts = re.split(r"([0-9]+)", name)
    # Digits compare by length, then as text: as numbers, without converting huge ones.
    values = [part.lstrip("0") if i % 2 else part for i, part in enumerate(parts)]
    keys = [(0, len(v), v) if i % 2 else (1, 0, v) for i, v in enumerate(values)]
    return (*keys, (1, 0, name))


def shown(names: Iterable[object], limit: int = 5) -> str:
    """A few names for a message, escaped and shortened, with the count of those left out."""
    texts = [escape_name(str(name)) for name in names]
    texts = [text if len(text) <= 160 else text[:157] + "..." for text in texts]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
