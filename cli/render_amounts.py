"""Seconds and bytes for people."""

__all__ = ["amount_of_bytes", "amount_of_time"]


def amount_of_time(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def amount_of_bytes(count: float) -> str:
    """Bytes in a binary unit that suits them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TB"
