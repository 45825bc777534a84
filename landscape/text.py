"""Text from untrusted files, made printable."""

from __future__ import annotations

__all__ = ["escape_name"]


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
