"""``sklearn-tabular``: a multilayer perceptron on a table, prepared by scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.errors import UsageError
from landscape.task import Task
from landscape.tasks import Recipe
from landscape.tasks._common import (
    check_choice,
    check_flag,
    check_integer,
    mlp_of,
    take_split,
)
from landscape.tasks._extras import optional
from landscape.tasks._files import TABLES, existing, read_table
from landscape.tasks._labels import class_indices, numbers

__all__ = ["RECIPE", "build"]

RECIPE = Recipe(steps=1000, batch_size=64, learning_rate=1e-2)

_EXTRA = "tabular"
_KINDS = ("auto", "classification", "regression")
_STANDARDISE = ("inputs", "both", "none")


def build(
    *,
    data: str | None = None,
    target: str | None = None,
    columns: list[str] | None = None,
    kind: str = "auto",
    hidden: list[int] | tuple[int, ...] = (16,),
    activation: str = "tanh",
    bias: bool = True,
    outputs: int | None = None,
    standardise: str = "inputs",
    scale_by: str | None = None,
    test_fraction: float = 0.0,
    split: str = "train",
) -> Task:
    """Build the task: cross-entropy of the class, or half the squared error of a number.

    Columns of numbers come first, each less its mean and over its standard deviation (of the rows,
    divisor N); then a column of 0 and 1 for every value of every other column, in sorted order.
    Means, deviations and values are those of the training rows alone.

    Args:
        data: a table with a header: .csv, .tsv or .jsonl.
        target: its column of classes or numbers.
        columns: the columns of the inputs; all others unless given.
        kind: classification or regression; auto takes whole numbers, words and truth values for
            classes.
        hidden: units of each hidden layer, such as [32, 16]; [] is a linear model.
        activation: tanh, relu, gelu, silu, elu, softplus, sigmoid or identity.
        bias: whether the layers have biases.
        outputs: 1 for a single logit of the second of two classes; else one logit a class.
        standardise: inputs, both (also the number to predict) or none.
        scale_by: another table whose rows are the training rows for means, deviations and values.
        test_fraction: part of the rows that is held out, always the same rows; 0 is none.
        split: train (the rows not held out), test or all.

    Raises:
        UsageError: a missing file, column or library, missing values, or a bad setting.
    """
    path = existing("data", data, what=f"a table ({', '.join(TABLES)})")
    if target is None:
        raise UsageError("--set target=COLUMN is missing; expected the column to predict")
    table = _table(path, target, columns)
    fraction = test_fraction
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise UsageError(f"setting test_fraction={fraction!r}: expected a number from 0 to below 1")
    rows = torch.arange(len(table))
    if fraction:
        chosen, train = (take_split(s, (rows,), 1 - fraction)[0] for s in (split, "train"))
    else:
        chosen = train = rows
        if check_choice("split", split, ("train", "test", "all")) == "test":
            raise UsageError("there are no test rows; hold some out with --set test_fraction=0.2")
    seen = table.iloc[train.numpy()]
    if scale_by is not None:
        seen = _table(existing("scale_by", scale_by), target, columns)
    standardise = check_choice("standardise", standardise, _STANDARDISE)
    names = [c for c in table.columns if c != target] if columns is None else columns
    wanted = table.iloc[chosen.numpy()]
    inputs = _inputs(seen[names], wanted[names], path, scale=standardise != "none")
    targets, classes = _targets(seen, wanted, path, target, kind, standardise == "both")
    criterion, width = ("mse", 1) if classes == 0 else ("cross_entropy", classes)
    if outputs is not None and check_integer("outputs", outputs, 1) != width:
        if outputs != 1 or classes != 2:
            raise UsageError(
                f"setting outputs={outputs}: expected {width}, or 1 for a logit of two classes"
            )
        criterion, width, targets = "binary_cross_entropy", 1, targets[:, None].float()
    if not isinstance(hidden, list | tuple):
        raise UsageError(f"setting hidden={hidden!r}: expected a list such as [32, 16]")
    model = mlp_of(
        inputs.shape[1],
        width,
        widths=[check_integer("hidden", units, 1) for units in hidden],
        activation=activation,
        bias=check_flag("bias", bias),
    )
    return Task(model=model, data=(inputs, targets), criterion=criterion)


def _table(path: Path, target: str, columns: object) -> Any:
    if path.suffix not in TABLES:
        raise UsageError(f"{path}: expected a table, one of {', '.join(TABLES)}")
    if columns is not None and (not isinstance(columns, list) or not columns or target in columns):
        raise UsageError(
            f"setting columns={columns!r}: expected a list of columns without the target, such as "
            '["age", "weight"]'
        )
    table = read_table(path, [target, *(columns or [])], _EXTRA)
    if columns is not None:
        table = table[[*columns, target]]
    if len(table.columns) < 2:
        raise UsageError(f"{path} has no column beside {target!r}; expected at least one input")
    missing = table.isna().sum()
    for name, count in missing[missing > 0].items():
        raise UsageError(
            f"{path} has {count} missing values in {name!r}; fill them in or leave the rows out"
        )
    return table


def _inputs(seen: Any, wanted: Any, path: Path, *, scale: bool) -> Tensor:
    """Prepared inputs (N, d) of the wanted rows, by the statistics of the seen ones."""
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    pandas = optional("pandas", _EXTRA)
    numeric = [
        name
        for name in seen.columns
        if pandas.api.types.is_numeric_dtype(seen[name])
        and not pandas.api.types.is_bool_dtype(seen[name])
    ]
    other = [name for name in seen.columns if name not in numeric]
    prepare = ColumnTransformer(
        [
            ("numbers", StandardScaler() if scale else "passthrough", numeric),
            ("values", OneHotEncoder(sparse_output=False), other),
        ],
        sparse_threshold=0,
    )
    try:
        found = prepare.fit(seen).transform(wanted)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be prepared: {' '.join(str(error).split())}") from error
    result = torch.from_numpy(np.asarray(found, dtype=np.float32))
    if not bool(result.isfinite().all()):
        raise UsageError(f"{path} has infinite numbers; expected finite ones")
    return result


def _targets(
    seen: Any, wanted: Any, path: Path, target: str, kind: object, standardise: bool
) -> tuple[Tensor, int]:
    """Class indices (N,) and how many classes, or numbers (N, 1) and 0."""
    kind = check_choice("kind", kind, _KINDS)
    if kind == "auto":
        kind = "classification"
        if seen[target].dtype.kind == "f" and bool((seen[target] % 1 != 0).any()):
            kind = "regression"
    if kind == "classification":
        values = sorted(set(seen[target].tolist()), key=lambda v: (str(type(v)), v))
        names = {str(value): index for index, value in enumerate(values)}
        return class_indices(wanted[target].map(str), path, target, len(values), names), len(values)
    found = numbers(wanted[target], path, target).double()
    if standardise:
        deviation, mean = torch.std_mean(numbers(seen[target], path, target).double(), correction=0)
        found = (found - mean) / deviation
    return found.float(), 0
