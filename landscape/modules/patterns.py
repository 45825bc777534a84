"""Groups of parameters by patterns of their names, from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from landscape.errors import UsageError

__all__ = ["GroupPatterns"]

_EXAMPLE = '[groups] with lines such as left = ["left.*", "head.weight"]'


@dataclass(frozen=True, kw_only=True)
class GroupPatterns:
    """Groups by globs on parameter names.

    Attributes:
        groups: globs of every group by its name.
        rest: what becomes of parameters that no glob matches: ``one`` group called rest, one for
            each ``layer``, or an error where empty.
        source: the file, for messages.
    """

    groups: Mapping[str, tuple[str, ...]]
    rest: Literal["", "one", "layer"] = ""
    source: str = field(default="the groups", compare=False)

    @staticmethod
    def read(path: Path | str) -> GroupPatterns:
        """The groups of a TOML file: a table ``[groups]``, and ``rest = true`` or ``"layer"``.

        Raises:
            UsageError: the file cannot be read, is not TOML or says something else.
        """
        try:
            values = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise UsageError(f"--groups {path}: cannot be read ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"--groups {path} is not TOML: {error}") from error
        unknown = [key for key in values if key not in ("groups", "rest")]
        groups = values.get("groups")
        if unknown or not isinstance(groups, dict) or not groups:
            seen = f"{unknown[0]!r}" if unknown else "no groups"
            raise UsageError(f"--groups {path}: {seen}; expected {_EXAMPLE}, and rest = true")
        if "rest" in groups and not isinstance(groups["rest"], list | str):
            raise UsageError(
                f"--groups {path}: rest is among the groups; expected it above [groups]"
            )
        return GroupPatterns(
            groups={name: _globs(path, name, value) for name, value in groups.items()},
            rest=_rest(path, values.get("rest", False)),
            source=f"--groups {path}",
        )

    def described(self) -> dict[str, Any]:
        """What a result's record says of them."""
        return {"groups": {name: list(g) for name, g in self.groups.items()}, "rest": self.rest}


def _globs(path: Path | str, name: str, value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(g, str) for g in found):
        raise UsageError(
            f"--groups {path}: group {name!r} is {value!r}; expected globs on parameter names, "
            f"as in {_EXAMPLE}"
        )
    return tuple(found)


def _rest(path: Path | str, value: Any) -> Literal["", "one", "layer"]:
    if value == "layer":
        return "layer"
    if not isinstance(value, bool):
        raise UsageError(
            f"--groups {path}: rest is {value!r}; expected true (one group of all others), "
            '"layer" or false'
        )
    return "one" if value else ""
