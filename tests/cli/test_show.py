"""``landscape show`` and ``landscape plot``: what they make of result files."""

from __future__ import annotations

import h5py
import pytest

from landscape_cli.app import run

CONTROL = "\x1b]0;title\x07\x1b[2J\x1b[31m"
MARKUP = "[red]red[/red] [link=http://x]x[/link] [/nothing]"
BOTH = ("--operator", "hessian", "--operator", "ggn", "--bottom", "2", "--top", "3", "--json")


@pytest.fixture
def result(cli, tiny):
    """A result with both operators."""
    done = cli(
        *("hessian", tiny.checkpoint, "--task", tiny.task, "-o", tiny.folder / "out"),
        *BOTH,
    )
    return done.document["results"][0]["file"]


class TestShow:
    def test_table(self, cli, result):
        done = cli("show", result)
        assert (done.code, done.err) == (0, "")
        for word in ("hessian eigenvalues", "ggn eigenvalues", "trace", "26 parameters"):
            assert word in done.out

    def test_json_has_what_the_measurement_printed(self, cli, tiny, result):
        again = cli(
            *("hessian", tiny.checkpoint, "--task", tiny.task, "-o", tiny.folder / "out"),
            *BOTH,
        )
        assert cli("show", result, "--json").values == again.values

    def test_several(self, cli, result):
        document = cli("show", result, result, "--json").document
        assert len(document["results"]) == 2

    def test_one_bad_file_is_named(self, cli, tiny, result):
        done = cli("show", result, tiny.checkpoint, "--json")
        assert done.code == 2
        assert str(tiny.checkpoint) in done.document["errors"][0]["message"]

    def test_text_from_the_file_is_escaped(self, cli, result):
        with h5py.File(result, "r+") as file:
            for name in ("checkpoint", "task", "device", "dtype"):
                file.attrs[name] = f"{MARKUP} {CONTROL}"
            file.attrs["warnings"] = '["[bold]\\u001b[31m \\u202e"]'
            file.attrs["config"] = '{"loss": "[red]\\u001b", "units": "[/x]\\u001b"}'
            for kind in ("spectrum", "moments"):
                file.move(f"{kind}/ggn", f"{kind}/{MARKUP.replace('/', '|')}{CONTROL}")
        done = cli("show", result)
        assert done.code == 0, done.err
        for control in ("\x1b", "\x07", "\u202e"):
            assert control not in done.out + done.err
        assert "\\x1b]0;title\\x07\\x1b[2J" in done.out
        assert "[red]red[/red]" in done.out
        assert "[red]red[|red]" in done.out
        assert "warning: [bold]\\x1b[31m \\u202e" in done.err
        assert cli("show", result, "--json").code == 0


class TestPlot:
    @pytest.mark.parametrize(
        ("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
    )
    def test_formats(self, cli, tiny, result, ending, start):
        figure = tiny.folder / "figures" / f"spectrum.{ending}"
        done = cli("plot", result, "-o", figure, "--json")
        assert done.code == 0
        assert figure.read_bytes().startswith(start)
        (entry,) = done.document["results"]
        assert entry["file"] == str(figure)
        assert set(entry) >= {"checkpoint", "step", "status", "config", "values", "warnings"}

    def test_a_figure_is_a_function_of_its_results(self, cli, tiny, result):
        contents = []
        for _ in range(2):
            cli("plot", result, "-o", tiny.folder / "f.svg")
            contents.append((tiny.folder / "f.svg").read_bytes())
        assert contents[0] == contents[1]

    def test_default_is_beside_the_result(self, cli, result):
        done = cli("plot", result)
        assert f"figure: {result.removesuffix('.h5')}.png" in done.err
        assert done.out == ""

    def test_several_checkpoints(self, cli, tiny, draw):
        for step in (1, 20):
            tiny.write_checkpoint(f"runs/step_{step}.safetensors", draw(seed=step))
        done = cli(
            *("hessian", tiny.folder / "runs" / "*", "--task", tiny.task, "--json"),
            *("-o", tiny.folder / "out"),
        )
        files = [entry["file"] for entry in done.document["results"]]
        figure = tiny.folder / "series.svg"
        assert cli("plot", *files, "-o", figure).code == 0
        assert figure.stat().st_size > 1000

    def test_unwritable(self, cli, tiny, result):
        done = cli("plot", result, "-o", tiny.checkpoint / "figure.png")
        assert done.code == 2
        assert "cannot write" in done.errors[0]


def test_show_and_plot_restore_the_signal_handler(result):
    import signal

    before = signal.getsignal(signal.SIGTERM)
    run(["show", result])
    assert signal.getsignal(signal.SIGTERM) is before
