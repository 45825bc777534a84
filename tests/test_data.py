"""Data: every form that a task may give, its digest, subsets and micro-batches."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, TensorDataset

from landscape.data import map_tensors, materialise, micro_batches
from landscape.errors import LandscapeError, TaskError, UsageError

INPUTS = torch.arange(24.0).reshape(12, 2)
LABELS = torch.arange(12)
Pair = namedtuple("Pair", "inputs labels")


class Rows(Dataset):
    """A map-style data set that counts its readings."""

    def __init__(self, length=12):
        self.read = []
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.read.append(index)
        return INPUTS[index], int(LABELS[index])


class Indexable:
    """Not a Dataset by type, but by what it can do."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"x": INPUTS[index], "labels": LABELS[index]}


def cut(*sizes):
    """The pairs in batches of these sizes."""
    return list(zip(INPUTS.split(sizes), LABELS.split(sizes), strict=True))


def joined(data):
    return [torch.cat(parts) for parts in zip(*data.batches, strict=True)]


class TestForms:
    @pytest.mark.parametrize(
        "data",
        [
            (INPUTS, LABELS),
            [INPUTS, LABELS],
            cut(12),
            cut(5, 4, 3),
            tuple(cut(5, 7)),
            [list(pair) for pair in cut(5, 7)],
            [Pair(*pair) for pair in cut(5, 7)],
            TensorDataset(INPUTS, LABELS),
            ConcatDataset([TensorDataset(*pair) for pair in cut(5, 7)]),
            DataLoader(TensorDataset(INPUTS, LABELS), batch_size=5),
            DataLoader(Rows(), batch_size=12),
            Rows(),
        ],
        ids=[
            *("tuple", "list", "one-batch", "batches", "tuple-of-batches", "lists", "named"),
            *("dataset", "concat", "loader", "loader-of-rows", "rows"),
        ],
    )
    def test_pairs(self, data):
        found = materialise(data)
        inputs, labels = joined(found)
        assert torch.equal(inputs, INPUTS)
        assert torch.equal(labels, LABELS)
        assert found.n_examples == 12
        assert found.indices is None
        assert found.digest == materialise((INPUTS, LABELS)).digest

    def test_one_tensor(self):
        assert materialise(INPUTS).batches[0][0] is not None
        assert materialise(INPUTS).n_examples == 12

    def test_mappings(self):
        batches = [{"x": x, "labels": y} for x, y in cut(5, 7)]
        found = materialise(batches)
        assert [len(batch["x"]) for batch in found.batches] == [5, 7]
        assert found.digest == materialise(Indexable()).digest

    def test_nested(self):
        batches = [{"inputs": {"a": x, "b": (x, x + 1)}, "labels": y} for x, y in cut(5, 7)]
        found = materialise(batches)
        assert torch.equal(found.batches[1]["inputs"]["b"][1], INPUTS[5:] + 1)

    def test_named_tuples_keep_their_names(self):
        (batch,) = materialise([Pair(INPUTS, LABELS)]).batches
        assert torch.equal(batch.labels, LABELS)
        for piece in micro_batches(materialise([Pair(INPUTS, LABELS)]), 5):
            assert piece.labels.shape == piece.inputs.shape[:1]

    def test_other_leaves_are_kept(self):
        (batch,) = materialise([(INPUTS, LABELS, "text", None)]).batches
        assert batch[2:] == ("text", None)

    def test_empty_batches_are_left_out(self):
        found = materialise([(INPUTS[:0], LABELS[:0]), *cut(12)])
        assert len(found.batches) == 1

    def test_gradients_are_cut(self):
        (batch,) = materialise([(INPUTS.clone().requires_grad_(), LABELS)]).batches
        assert not batch[0].requires_grad

    def test_batches_of_scalars_and_booleans(self):
        found = materialise((LABELS, LABELS > 5, torch.ones(12, dtype=torch.complex64)))
        assert found.n_examples == 12

    def test_one_example_data_sets(self):
        assert materialise((INPUTS[:1], LABELS[:1])).n_examples == 1


class TestRefused:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            ((INPUTS[:0], LABELS[:0]), "zero examples"),
            ([], "zero examples"),
            ((), "zero examples"),
            (Rows(0), "zero examples"),
            ((INPUTS, LABELS[:5]), r"first dimensions \[\(12,\), \(5,\)\]"),
            ((INPUTS, torch.tensor(3)), "first dimensions"),
            (torch.tensor(3), "0-dimensional"),
            (3, "are a int"),
            (None, "are a NoneType"),
            ("text", "holds no tensor|raised"),
            (["text"], "holds no tensor|raised"),
            ([3], "raised TypeError"),
            (iter(cut(12)), "are a list_iterator"),
            ({"x": INPUTS, "labels": LABELS}, r"mapping.*data=\[batch\]"),
            (Rows(13), "raised IndexError"),
            (DataLoader(TensorDataset(INPUTS), shuffle=True), "shuffle=False"),
            ([(INPUTS.to_sparse(), LABELS)], "raised"),
            ([(INPUTS.to("meta"), LABELS)], "raised"),
        ],
        ids=[
            *("no-rows", "no-batches", "no-tensors", "no-length", "unequal", "scalar-in-tuple"),
            *("scalar", "number", "none", "text", "texts", "numbers", "iterator", "mapping"),
            *("failing", "shuffled", "sparse", "meta"),
        ],
    )
    def test_with_the_cause(self, data, words):
        with pytest.raises(TaskError, match=words):
            materialise(data)

    def test_streams(self):
        class Stream(IterableDataset):
            def __iter__(self):
                yield INPUTS[0]

        with pytest.raises(TaskError, match="IterableDataset"):
            materialise(Stream())

    def test_batches_that_change_between_two_readings(self):
        class Noisy(Dataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                return torch.rand(2)

        with pytest.raises(TaskError, match="other batches when read twice"):
            materialise(DataLoader(Noisy(), batch_size=2))

    def test_own_errors_pass(self):
        class Failing(Rows):
            def __getitem__(self, index):
                raise UsageError("mine")

        with pytest.raises(LandscapeError, match=r"^mine$"):
            materialise(Failing())


class TestDigest:
    def test_batch_boundaries_do_not_matter(self):
        digests = {materialise(cut(*s)).digest for s in [(12,), (5, 7), (1,) * 12, (4, 4, 4)]}
        assert len(digests) == 1

    def test_contents_order_dtype_and_shape_do(self):
        changed = INPUTS.clone()
        changed[11, 1] += 1e-5
        order = torch.tensor([1, 0, *range(2, 12)])
        variants = [
            (INPUTS, LABELS),
            (changed, LABELS),
            (INPUTS[order], LABELS[order]),
            (INPUTS[order], LABELS),
            (INPUTS.double(), LABELS),
            (INPUTS, LABELS.int()),
            (INPUTS.reshape(12, 2, 1), LABELS),
            (INPUTS, LABELS, LABELS),
            (INPUTS[:11], LABELS[:11]),
            (LABELS, INPUTS),
        ]
        assert len({materialise(data).digest for data in variants}) == len(variants)
        named = materialise([{"x": INPUTS, "labels": LABELS}]).digest
        assert named != materialise([{"y": INPUTS, "labels": LABELS}]).digest

    def test_memory_layout_does_not_matter(self):
        strided = INPUTS.T.contiguous().T
        assert not strided.is_contiguous()
        assert materialise((strided, LABELS)).digest == materialise((INPUTS, LABELS)).digest

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.complex64, torch.int8])
    def test_every_dtype_has_one(self, dtype):
        one, two = torch.ones(12, dtype=dtype), torch.zeros(12, dtype=dtype)
        assert materialise((INPUTS, one)).digest != materialise((INPUTS, two)).digest


class TestSubset:
    FORMS = (
        (INPUTS, LABELS),
        cut(5, 4, 3),
        TensorDataset(INPUTS, LABELS),
        DataLoader(TensorDataset(INPUTS, LABELS), batch_size=5),
    )

    @pytest.mark.parametrize("data", FORMS, ids=["tensors", "batches", "dataset", "loader"])
    def test_sorted_random_examples(self, data):
        found = materialise(data, examples=7, seed=3)
        inputs, labels = joined(found)
        assert found.n_examples == 7
        assert torch.equal(found.indices, labels)
        assert torch.equal(inputs, INPUTS[found.indices])
        assert (found.indices.diff() > 0).all()
        assert torch.equal(found.indices, materialise((INPUTS, LABELS), examples=7, seed=3).indices)

    def test_seeds_differ(self):
        taken = {
            tuple(materialise((LABELS,), examples=6, seed=s).indices.tolist()) for s in range(9)
        }
        assert len(taken) > 5
        assert len({index for indices in taken for index in indices}) == 12

    def test_only_its_examples_are_read(self):
        rows = Rows()
        found = materialise(rows, examples=4)
        assert rows.read == found.indices.tolist()

    @pytest.mark.parametrize("examples", [12, 13, None])
    def test_everything(self, examples):
        found = materialise((INPUTS, LABELS), examples=examples)
        assert found.indices is None
        assert found.n_examples == 12

    @pytest.mark.parametrize("examples", [0, -1])
    def test_none(self, examples):
        with pytest.raises(UsageError, match=f"--examples {examples}"):
            materialise((INPUTS, LABELS), examples=examples)

    def test_global_random_state_is_untouched(self):
        state = torch.get_rng_state()
        materialise((INPUTS, LABELS), examples=3)
        materialise(DataLoader(TensorDataset(INPUTS, LABELS), batch_size=5))
        materialise(Rows())
        assert torch.equal(torch.get_rng_state(), state)


class TestMicroBatches:
    def lengths(self, data, size):
        return [len(batch[0]) for batch in micro_batches(materialise(data), size)]

    def test_unequal_pieces(self):
        assert self.lengths((INPUTS, LABELS), 5) == [5, 5, 2]
        assert self.lengths((INPUTS, LABELS), 12) == [12]
        assert self.lengths((INPUTS, LABELS), None) == [12]
        assert self.lengths((INPUTS, LABELS), 1) == [1] * 12

    def test_given_batches_are_split_but_not_joined(self):
        assert self.lengths(cut(5, 4, 3), 4) == [4, 1, 4, 3]
        assert self.lengths(cut(5, 4, 3), 100) == [5, 4, 3]

    def test_contents(self):
        pieces = micro_batches(materialise([{"x": INPUTS, "labels": LABELS}]), 5)
        assert torch.equal(torch.cat([piece["x"] for piece in pieces]), INPUTS)
        assert torch.equal(torch.cat([piece["labels"] for piece in pieces]), LABELS)

    def test_tensors_without_examples_are_kept_whole(self):
        mask, scale = torch.ones(3, 3), torch.tensor(2.0)
        pieces = micro_batches(materialise([(INPUTS, LABELS, mask, scale)]), 5)
        assert all(piece[2].shape == (3, 3) and piece[3] == 2 for piece in pieces)

    @pytest.mark.parametrize("size", [0, -3])
    def test_not_positive(self, size):
        with pytest.raises(UsageError, match=f"--batch-size {size}"):
            micro_batches(materialise((INPUTS,)), size)


def test_map_tensors_keeps_the_structure():
    batch = {"a": [INPUTS, (LABELS, "text")], "b": 3}
    found = map_tensors(batch, lambda t: t * 2)
    assert torch.equal(found["a"][0], INPUTS * 2)
    assert torch.equal(found["a"][1][0], LABELS * 2)
    assert found["a"][1][1] == "text"
    assert found["b"] == 3
