"""The README and the handbook: commands and code run, links lead somewhere, help is current."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from landscape_cli.app import run

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*/README.md"))
# Its packages are not installed beside others.
THIRD_PARTY = ROOT / "examples" / "third_party" / "README.md"
LONG = [ROOT / "examples" / name / "README.md" for name in ("lightning_run", "timm_classifier")]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

# Installation: needs a network or a fresh machine, and is what continuous integration does.
NOT_RUN = (
    re.compile(r"make [a-z-]+"),
    re.compile(r"git clone \S+( \S+)?"),
    re.compile(r"pip install .+"),
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line's number and the comment before it."""

    language: str
    text: str
    line: int
    note: str

    def commands(self) -> list[tuple[str, int]]:
        """The command lines of a shell block with the exit codes that they should have."""
        lines = [line.strip() for line in self.text.splitlines()]
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        lines = [line for line in lines if line and not line.startswith("#")]
        found = []
        for line in lines:
            command, _, comment = line.partition("  #")
            code = re.fullmatch(r"\s*exit (\d+)\s*", comment)
            found.append((command.strip(), int(code[1]) if code else 0))
        return found


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, lines = [], page.read_text("utf-8").splitlines()
    start, note = None, ""
    for number, line in enumerate(lines):
        if line.startswith("```") and start is None:
            start = number
            note = lines[number - 1].strip() if number else ""
        elif line == "```" and start is not None:
            text = "\n".join(lines[start + 1 : number]) + "\n"
            found.append(Block(lines[start][3:].strip(), text, start + 2, note))
            start = None
    assert start is None, f"{page}: the block of line {start} is never closed"
    return found


def words(command: str) -> list[str]:
    """A command line's words, unquoted globs expanded as a shell does."""
    found = []
    for word in shlex.split(command, posix=False):
        if word[0] in "'\"":
            found.append(word[1:-1])
        elif glob.has_magic(word):
            matches = sorted(glob.glob(word))
            assert matches, f"{command}: nothing matches {word}"
            found += matches
        else:
            found.append(word)
    return found


_WRITTEN: dict[str, dict[str, bytes]] = {}


def execute(command: str) -> int:
    """Run a command line in the working directory and return its exit code."""
    program, *arguments = words(command)
    if program == "landscape":
        return run(arguments)
    if program == "torchrun":
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        launch = [sys.executable, "-m", "torch.distributed.run", *arguments]
        return subprocess.run(launch, env=environment, check=False).returncode
    assert program == "python", f"unexpected command {command!r}"
    # Several pages begin with the same script: it runs once, and later pages get its files.
    if command not in _WRITTEN:
        before = set(os.listdir())
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        script = [sys.executable, str(ROOT / "tests" / "oracles" / "mended.py"), *arguments]
        done = subprocess.run(script, env=environment, check=False)
        if done.returncode != 0:
            return done.returncode
        new = [Path(name) for name in set(os.listdir()) - before]
        files = [p for path in new for p in (path, *path.rglob("*")) if p.is_file()]
        _WRITTEN[command] = {str(path): path.read_bytes() for path in files}
    for name, content in _WRITTEN[command].items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    return 0


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from threads and wait long for them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name, marks=pytest.mark.slow if page in LONG else ())
        for page, name in zip(PAGES, IDS, strict=True)
        if page != THIRD_PARTY
    ],
)
def test_every_command_and_python_block_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    run_page(page, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_page_whose_packages_are_installed_for_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [install] = [c for block in blocks(THIRD_PARTY) for c, _ in block.commands() if "pip" in c]
    words = ["--quiet", "--target", str(tmp_path / "site"), *shlex.split(install)[2:]]
    subprocess.run([sys.executable, "-m", "pip", "install", *words], check=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    run_page(THIRD_PARTY, capsys)


def run_page(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run every command and Python block of a page in the working directory."""
    namespace: dict[str, object] = {"__name__": "__handbook__"}
    for block in blocks(page):
        if block.note == "<!-- slurm -->":
            continue  # tests/cli/test_slurm.py runs these.
        if block.language in ("console", "bash"):
            for command, expected in block.commands():
                if any(pattern.fullmatch(command) for pattern in NOT_RUN):
                    continue
                code = execute(command)
                seen = capsys.readouterr()
                assert code == expected, f"line {block.line}: {command}\n{seen.out}{seen.err}"
        elif block.language == "python" and block.note != "<!-- no-run -->":
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_a_block_that_shows_a_file_equals_the_file(page: Path) -> None:
    for block in blocks(page):
        if shown := re.fullmatch(r"<!-- file: (\S+) -->", block.note):
            assert block.text == (ROOT / shown[1]).read_text("utf-8")


def test_the_readme_shows_the_whole_task_file() -> None:
    assert "<!-- file: examples/my_task.py -->" in [b.note for b in blocks(ROOT / "README.md")]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_make_targets_that_a_page_names_exist(page: Path) -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for block in blocks(page):
        if block.language in ("console", "bash"):
            for command, _ in block.commands():
                if target := re.fullmatch(r"make ([a-z-]+)", command):
                    assert target[1] in known


def prose(page: Path) -> str:
    """The page without its code, in which brackets mean something else."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings can be linked by."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_relative_links_and_images_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} does not exist"
        assert linked.is_relative_to(ROOT), f"{target} leaves the repository"
        if fragment:
            assert fragment in anchors(linked), f"{target}: no such heading"


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(index))
    }
    assert {page for page in PAGES if page.is_relative_to(index.parent)} - {index} <= linked


@pytest.fixture(scope="module")
def update_help() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update_help", ROOT / "docs" / "update_help.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_a_page() -> None:
    from landscape_cli.app import app

    names = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    names |= {group.name for group in app.registered_groups}
    assert {page.stem for page in (ROOT / "docs" / "commands").glob("*.md")} == names


def test_help_texts_are_current(update_help: ModuleType) -> None:
    stale = []
    for page, command in update_help.pages().items():
        text = page.read_text("utf-8")
        if update_help.updated(text, update_help.help_text(command)) != text:
            stale.append(str(page.relative_to(ROOT)))
    assert not stale, "run python docs/update_help.py"
