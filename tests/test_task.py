"""Tasks: what is accepted, how names are resolved, and how settings are read."""

from __future__ import annotations

import datetime
import hashlib
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from landscape.checkpoint import read_checkpoint
from landscape.criteria import Criterion, CrossEntropy
from landscape.data import materialise
from landscape.errors import CheckpointError, LandscapeError, TaskError, UsageError
from landscape.loading import load_weights
from landscape.risk import Risk
from landscape.task import Task, parse_settings, resolve_task

SOURCE = """
import torch
from torch import nn

from landscape import Task


def build(width=3, *, name="a"):
    model = nn.Linear(2, width)
    model.label = name
    return Task(model=model, data=(torch.ones(4, 2), torch.zeros(4, width)), criterion="mse")


def other():
    return build(7)


READY = build(5)
NUMBER = 3
"""


@pytest.fixture(autouse=True)
def _paths(monkeypatch):
    # A task's folder is appended to the path, and its module is remembered.
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("landscape_task_", "mine")):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(SOURCE)
    return path


def write(tmp_path, text, name="task.py"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return str(path)


class TestTask:
    def test_fields(self):
        model = nn.Linear(1, 1)
        task = Task(model=model, data=(), criterion="cross_entropy")
        assert isinstance(task.resolved_criterion, CrossEntropy)
        batch = (torch.ones(2, 1), torch.zeros(2))
        assert torch.equal(task.forward(model, batch), model(batch[0]))
        assert task.initialise is None
        assert task.convert_weights is None
        assert task.batch_size is None

    def test_its_own_micro_batch_holds_unless_another_is_asked_for(self):
        data = (torch.ones(10, 1), torch.zeros(10, 1))
        task = Task(model=nn.Linear(1, 1), data=data, criterion="mse", batch_size=4)
        assert Risk(task, materialise(data)).n_batches == 3
        assert Risk(task, materialise(data), batch_size=10).n_batches == 1
        for size in (0, -1, 2.5, True, "8"):
            with pytest.raises(TaskError, match=r"batch_size is .* expected a positive number"):
                Task(model=nn.Linear(1, 1), data=data, criterion="mse", batch_size=size)

    def test_files_are_part_of_its_identity(self, tmp_path):
        text = SOURCE.replace('criterion="mse")', 'criterion="mse", files=["notes.json"])')
        path = write(tmp_path, text.replace("notes.json", str(tmp_path / "notes.json")))
        (tmp_path / "notes.json").write_text("1")
        first = resolve_task(path).sha256
        assert resolve_task(path).sha256 == first
        (tmp_path / "notes.json").write_text("2")
        assert resolve_task(path).sha256 != first
        (tmp_path / "notes.json").unlink()
        with pytest.raises(TaskError, match=r"notes\.json' cannot be read"):
            resolve_task(path)

    def test_names_in_a_file_that_are_not_the_model_s(self, tmp_path):
        model = nn.Linear(2, 1)
        torch.save({"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}, tmp_path / "a.pt")
        checkpoint = read_checkpoint(tmp_path / "a.pt")

        def rename(model, tensors):
            return {"weight": tensors["w"], "bias": tensors["b"]}

        task = Task(model=model, data=(), criterion="mse", convert_weights=rename)
        load_weights(task, model, checkpoint)
        assert model.weight.tolist() == [[1, 2]]
        torch.save({"weight": torch.ones(1, 2)}, tmp_path / "b.pt")
        with pytest.raises(CheckpointError, match="KeyError: 'w'"):
            load_weights(task, model, read_checkpoint(tmp_path / "b.pt"))

    def test_own_criteria(self):
        class Mine(Criterion):
            pass

        mine = Mine()
        for criterion in (mine, lambda outputs, batch: outputs.mean()):
            task = Task(model=nn.Linear(1, 1), data=(), criterion=criterion)
            assert isinstance(task.resolved_criterion, Criterion)
        assert Task(model=nn.Linear(1, 1), data=(), criterion=mine).resolved_criterion is mine

    @pytest.mark.parametrize("model", [None, nn.Linear, torch.ones(2), "model"], ids=repr)
    def test_model_of_the_wrong_type(self, model):
        with pytest.raises(TaskError, match=r"expected a torch\.nn\.Module"):
            Task(model=model, data=(), criterion="mse")

    @pytest.mark.parametrize("criterion", ["entropy", None, 3, nn.MSELoss()], ids=repr)
    def test_criterion_of_the_wrong_type(self, criterion):
        with pytest.raises(TaskError, match="criterion"):
            Task(model=nn.Linear(1, 1), data=(), criterion=criterion)

    def test_mappings_need_a_forward_function(self):
        task = Task(model=nn.Linear(1, 1), data=(), criterion="mse")
        with pytest.raises(TaskError, match="forward function"):
            task.forward(task.model, {"inputs": torch.ones(1)})


class TestFiles:
    def test_default_attribute(self, file):
        found = resolve_task(str(file))
        assert found.task.model.out_features == 3
        assert (found.name, found.path, found.settings) == (str(file), str(file), {})
        assert found.sha256 == hashlib.sha256(SOURCE.encode()).hexdigest()

    @pytest.mark.parametrize(("attribute", "width"), [("other", 7), ("READY", 5), ("build", 3)])
    def test_named_attribute(self, file, attribute, width):
        found = resolve_task(f"{file}:{attribute}")
        assert found.task.model.out_features == width
        assert found.name == f"{file}:{attribute}"

    def test_settings(self, file):
        found = resolve_task(str(file), {"width": 4, "name": "b"})
        assert (found.task.model.out_features, found.task.model.label) == (4, "b")
        assert found.settings == {"width": 4, "name": "b"}

    def test_relative_and_home_paths(self, file, monkeypatch):
        monkeypatch.chdir(file.parent)
        monkeypatch.setenv("HOME", str(file.parent))
        for name in ("task.py", "./task.py", "~/task.py:build"):
            assert resolve_task(name).path == str(file)

    def test_a_symlink_is_followed(self, file, tmp_path):
        (tmp_path / "link.py").symlink_to(file)
        assert resolve_task(str(tmp_path / "link.py")).path == str(file)

    def test_two_files_of_one_name(self, file, tmp_path):
        second = write(tmp_path, SOURCE.replace("width=3", "width=9"), "b/task.py")
        widths = [resolve_task(str(f)).task.model.out_features for f in (file, second)]
        assert widths == [3, 9]

    def test_a_changed_file_is_read_again(self, file):
        first = resolve_task(str(file))
        file.write_text(SOURCE.replace("width=3", "width=11"))
        second = resolve_task(str(file))
        assert second.task.model.out_features == 11
        assert first.sha256 != second.sha256

    def test_helper_modules_beside_it(self, tmp_path):
        write(tmp_path, "WIDTH = 6", "mine_helper.py")
        path = write(tmp_path, "from mine_helper import WIDTH\n" + SOURCE.replace("=3", "=WIDTH"))
        assert resolve_task(path).task.model.out_features == 6
        assert sys.path[-1] == str(tmp_path)

    def test_files_named_like_libraries_shadow_nothing(self, file, tmp_path):
        for name in ("torch.py", "landscape.py", "mine_torch.py"):
            write(tmp_path, "raise RuntimeError('shadowed')", name)
        assert resolve_task(str(file)).task.model.out_features == 3

    def test_dataclasses_in_a_task_file(self, tmp_path):
        # They look their own module up.
        text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        text += "@dataclass\nclass Options:\n    width: int = 3\n" + SOURCE
        assert resolve_task(write(tmp_path, text)).task.model.out_features == 3

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("none.py", "does not exist"),
            ("no/such/file", "does not exist"),
            ("x" * 300 + "/task.py", "does not exist"),
            (".", "neither a file"),
            (":build", "neither a file"),
            ("my-task.txt", "neither a file"),
            ("./", "not a file"),
        ],
        ids=["file", "folder", "long", "dot", "colon", "text", "directory"],
    )
    def test_missing(self, tmp_path, monkeypatch, name, words):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(LandscapeError, match=words):
            resolve_task(name)

    def test_missing_attribute_lists_what_there_is(self, file):
        with pytest.raises(UsageError, match=r"'bild'.*it defines READY, build, other\."):
            resolve_task(f"{file}:bild")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("import torch\n\n1 / 0", r"ZeroDivisionError: division by zero \(line 3\)"),
            ("def f():\n    1 / 0\n\nf()", r"ZeroDivisionError.*\(line 2\)"),
            ("x = (", r"SyntaxError.*\(line 1\)"),
            ("import no_such_package", "ModuleNotFoundError.*no_such_package"),
            ("from torch import no_such_name", "ImportError.*no_such_name"),
            ("import sys; sys.exit('bye')", "SystemExit: bye"),
            ("x = '\0'", "null bytes"),
        ],
        ids=["error", "deeper", "syntax", "package", "name", "exit", "null"],
    )
    def test_failing_imports(self, tmp_path, text, words):
        path = write(tmp_path, text)
        with pytest.raises(TaskError, match=f"failed to import.*{words}"):
            resolve_task(path)

    @pytest.mark.parametrize(
        "text",
        [
            "raise error",
            "try:\n    raise error\nexcept RuntimeError as cause:\n"
            "    raise ModuleNotFoundError('Could not import module') from cause",
            "def build():\n    raise error",
        ],
        ids=["itself", "cause", "builder"],
    )
    def test_a_torchvision_of_another_torch(self, tmp_path, text):
        error = "error = RuntimeError('operator torchvision::nms does not exist')\n"
        with pytest.raises(TaskError, match=r"built for another torch.*pip install.*torchvision"):
            resolve_task(write(tmp_path, error + text))

    def test_an_interrupt_passes(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            resolve_task(write(tmp_path, "raise KeyboardInterrupt"))

    def test_own_errors_pass(self, tmp_path):
        path = write(tmp_path, "from landscape.errors import UsageError\nraise UsageError('mine')")
        with pytest.raises(UsageError, match=r"^mine$"):
            resolve_task(path)

    def test_an_absent_file_leads_to_one_that_is_there_or_to_a_new_one(self, tmp_path):
        path = write(tmp_path, SOURCE, "my_task.py")
        with pytest.raises(UsageError, match="landscape init-task CKPT") as caught:
            resolve_task(str(tmp_path / "mytask.py"))
        assert f"Did you mean {path!r}?" in str(caught.value)
        with pytest.raises(UsageError, match="landscape init-task CKPT") as caught:
            resolve_task(str(tmp_path / "else.py"))
        assert "Did you mean" not in str(caught.value)


class TestBuilders:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (
                "def build():\n    raise ValueError('no data')",
                r"raised ValueError: no data .*line 2",
            ),
            ("def build():\n    raise SystemExit(1)", "raised SystemExit"),
            ("def build():\n    pass", "returned a NoneType; expected"),
            ("def build():\n    return {}", "returned a dict; expected"),
            ("def build():\n    yield 1", "returned a generator; expected"),
            ("from torch import nn\nbuild = nn.Linear(1, 1)", "builder raised TypeError"),
            ("build = 3", "is a int; expected a function"),
            ("build = dict", "returned a dict"),
            ("build = iter", "builder raised TypeError"),
        ],
        ids=["raise", "exit", "none", "dict", "generator", "module", "number", "type", "builtin"],
    )
    def test_failures(self, tmp_path, text, words):
        with pytest.raises(TaskError, match=words):
            resolve_task(write(tmp_path, text))

    @pytest.mark.parametrize(
        ("signature", "settings", "words"),
        [
            ("", {"a": 1}, "unknown setting 'a'; --set accepts: no settings$"),
            ("b, c=2", {}, "missing a required argument: 'b'; --set accepts: b, c=2$"),
            ("b, /", {"b": 1}, "positional"),
            (
                "*, text: str | None = None, width: int = 3",
                {"txt": "a"},
                "unknown setting 'txt'; --set accepts: text, width=3. Did you mean 'text'[?]$",
            ),
            ("b, **rest", {"a": 1}, r"missing a required argument: 'b'; .* b, \*\*rest$"),
        ],
        ids=["unknown", "missing", "positional", "near", "any"],
    )
    def test_settings_that_do_not_fit(self, tmp_path, signature, settings, words):
        path = write(tmp_path, f"def build({signature}):\n    pass")
        with pytest.raises(UsageError, match=words):
            resolve_task(path, settings)

    def test_the_path_that_an_adapter_is_given_is_no_setting_of_the_user_s(self):
        words = r"unknown setting 'txt'; --set accepts: text, .*Did you mean 'text'"
        with pytest.raises(UsageError, match=words) as caught:
            resolve_task("hf-causal-lm", {"txt": "a"}, checkpoint="model.safetensors")
        assert "checkpoint" not in str(caught.value)
        assert "None" not in str(caught.value)

    def test_a_ready_task_takes_no_settings(self, file):
        with pytest.raises(UsageError, match="not a builder"):
            resolve_task(f"{file}:READY", {"width": 3})

    def test_keyword_arguments_are_passed_on(self, tmp_path):
        text = SOURCE + "\ndef any(**settings):\n    return build(**settings)\n"
        found = resolve_task(write(tmp_path, text) + ":any", {"width": 8})
        assert found.task.model.out_features == 8

    def test_global_random_state_is_untouched(self, file):
        state = torch.get_rng_state()
        resolve_task(str(file))
        assert torch.equal(torch.get_rng_state(), state)


class TestModules:
    def test_module_and_attribute(self, tmp_path, monkeypatch):
        write(tmp_path, "", "mine/__init__.py")
        write(tmp_path, SOURCE, "mine/tasks.py")
        monkeypatch.syspath_prepend(tmp_path)
        found = resolve_task("mine.tasks:other")
        assert found.task.model.out_features == 7
        assert found.path == str(tmp_path / "mine" / "tasks.py")
        assert resolve_task("mine.tasks").task.model.out_features == 3

    def test_module_without_a_dot_needs_the_attribute(self, tmp_path, monkeypatch):
        write(tmp_path, SOURCE, "mine_module.py")
        monkeypatch.syspath_prepend(tmp_path)
        assert resolve_task("mine_module:build").task.model.out_features == 3
        with pytest.raises(UsageError, match="unknown built-in task"):
            resolve_task("mine_module")

    @pytest.mark.parametrize("name", ["no.such_module", "torch.no_such_module", "nosuch:build"])
    def test_missing(self, name):
        with pytest.raises(UsageError, match="no module named"):
            resolve_task(name)

    def test_missing_inside(self, tmp_path, monkeypatch):
        write(tmp_path, "import no_such_package", "mine_broken.py")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(TaskError, match=r"failed to import.*no_such_package"):
            resolve_task("mine_broken:build")


class TestBuiltins:
    def test_near_names_are_suggested(self):
        with pytest.raises(UsageError, match="Did you mean 'digits-mlp'"):
            resolve_task("digit-mlp")

    def test_settings_are_checked(self):
        with pytest.raises(UsageError, match=r"--set accepts: .*width"):
            resolve_task("digits-mlp", {"withd": 3})

    def test_the_source_is_recorded(self):
        found = resolve_task("regression-mlp")
        assert found.path.endswith("regression_mlp.py")
        assert len(found.sha256) == 64


class TestSettings:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("3", 3),
            ("-1_000", -1000),
            ("0.5", 0.5),
            ("1e-3", 1e-3),
            ("inf", float("inf")),
            ("true", True),
            ("True", "True"),
            ("relu", "relu"),
            ("'3'", "3"),
            ('"a b"', "a b"),
            ("[1, 2]", [1, 2]),
            ("{a = 1}", {"a": 1}),
            ("2020-01-01", datetime.date(2020, 1, 1)),
            ("", ""),
            ("a=b", "a=b"),
            ("~/data", "~/data"),
            ("1\nother = 2", "1\nother = 2"),
            ("1\n[table]", "1\n[table]"),
        ],
        ids=repr,
    )
    def test_values(self, text, value):
        found = parse_settings([f"key={text}"])["key"]
        assert found == value
        assert type(found) is type(value)

    def test_several(self):
        assert parse_settings(["a=1", " b =x"]) == {"a": 1, "b": "x"}
        assert parse_settings([]) == {}

    @pytest.mark.parametrize("pair", ["a", "", "=1", "a-b=1", "1a=1", "a b=1"])
    def test_not_a_pair(self, pair):
        with pytest.raises(UsageError, match="expected key=value"):
            parse_settings([pair])

    def test_twice(self):
        with pytest.raises(UsageError, match="--set a: given twice"):
            parse_settings(["a=1", "a=1"])

    @given(st.text())
    def test_any_text_is_a_value(self, text):
        assert set(parse_settings([f"key={text}"])) == {"key"}


@pytest.mark.parametrize("symmetries", ["scale", None, 3])
def test_symmetries_are_a_list(symmetries):
    data = (torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TaskError, match="expected a list of"):
        Task(model=nn.Linear(2, 2), data=data, criterion="cross_entropy", symmetries=symmetries)
