"""The coverage-guided fuzzing of checkpoints, for a minute; for an hour it is run by hand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "benchmarks" / "fuzz_checkpoints.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="atheris is built for Linux")
def test_fuzzing_finds_nothing(tmp_path):
    limits = ["--seconds", "50", "--runs", "40000", "--findings", tmp_path / "findings"]
    done = subprocess.run(
        [sys.executable, PROGRAM, *limits], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "findings").iterdir()) == []
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert int(runs[1]) > 1000
    covered = [int(number) for number in re.findall(r"cov: (\d+)", done.stderr)]
    assert covered[-1] > 500
