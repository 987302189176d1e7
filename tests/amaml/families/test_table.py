"""The table family: which rows make a task, splits, scaling, classes, baselines, what it refuses, and that it learns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from pydantic import ValidationError

import amaml
from amaml.families.base import DataError
from amaml.families.table.family import TableFamily
from amaml.registry import build_family
from amaml.run.training import train
from amaml.spec import JobSpec, TableSpec

DATASET = UUID("0198b2a0-0000-7000-8000-000000000001")
HEADER = ["patient", "age", "dose", "ward", "reading"]


def spec(**changes: Any) -> TableSpec:
    return TableSpec.model_validate(
        {
            "dataset": DATASET,
            "task": "patient",
            "inputs": ["age", "dose"],
            "targets": ["reading"],
            "shots": 4,
            "queries": 5,
        }
        | changes
    )


def patients(tasks: int = 40, rows: int = 12, seed: int = 0, first: int = 0) -> list[list[Any]]:
    """A patient's reading is a line in the dose with a slope of the patient's own."""
    random = np.random.default_rng(seed)
    table: list[list[Any]] = []
    for task in range(first, first + tasks):
        slope, age = random.normal(1, 1), int(random.integers(20, 80))
        for row in range(rows):
            dose = round(float(random.uniform(0, 10)), 3)
            reading = round(100 + slope * dose + 0.1 * age, 4)
            table.append([f"p{task}", age, dose, ["north", "south"][row % 2], reading])
    return table


def write(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = HEADER) -> Path:
    path.write_text("\n".join(",".join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


def build(path: Path, seed: int = 0, **changes: Any) -> TableFamily:
    family = build_family(
        spec(**changes), seed=seed, dtype=torch.float64, device=torch.device("cpu"), datasets={str(DATASET): path}
    )
    assert isinstance(family, TableFamily)
    return family


def test_batches_hold_the_tables_rows_each_of_one_task(tmp_path: Path) -> None:
    table = patients()
    owner = {(age, dose, reading): patient for patient, age, dose, _, reading in table}
    family = build(write(tmp_path / "t.csv", table))
    tasks = family.training_batch(0, 6)
    scaling = family.scaling
    for task in range(6):
        rows = []
        for part, count in (("support", 4), ("query", 5)):
            x = tasks[f"{part}_x"][task].numpy() * scaling.x_std + scaling.x_mean
            y = scaling.raw_y(tasks[f"{part}_y"][task])[:, 0].tolist()
            assert len(y) == count
            rows += [(round(a), round(d, 3), round(r, 4)) for (a, d), r in zip(x.tolist(), y, strict=True)]
        assert len(set(rows)) == 9  # the query rows are held out
        assert len({owner[row] for row in rows}) == 1


def test_splits_are_disjoint_and_more_tasks_move_none(tmp_path: Path) -> None:
    few = build(write(tmp_path / "few.csv", patients()))
    more = build(write(tmp_path / "more.csv", patients(300, seed=1)), seed=7)
    splits = {part: set(own) for part, own in few._tasks_of.items()}
    assert len(set.union(*splits.values())) == sum(map(len, splits.values())) == 40
    for part, own in splits.items():
        assert own
        assert own <= set(more._tasks_of[part])
    assert len(more._tasks_of["test"]) == pytest.approx(60, abs=20)
    assert len(more._tasks_of["validation"]) == pytest.approx(30, abs=15)


def test_draws_repeat_and_are_those_of_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", patients())
    one, again, other = build(path), build(path), build(path, seed=1)
    again.training_batch(5, 3)
    for mine, theirs in (
        (one.evaluation_batch("test", 9), again.evaluation_batch("test", 9)),
        (one.training_batch(2, 4), again.training_batch(2, 4)),
    ):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not torch.equal(one.training_batch(2, 4)["support_x"], other.training_batch(2, 4)["support_x"])
    assert torch.equal(one.evaluation_batch("test", 3)["query_y"], one.evaluation_batch("test", 9)["query_y"][:3])


def test_a_column_can_say_the_split(tmp_path: Path) -> None:
    said = {f"p{i}": ["train", "Train", "validation", "test"][i % 4] for i in range(40)}
    rows = [[*row, said[row[0]]] for row in patients()]
    family = build(write(tmp_path / "t.csv", rows, [*HEADER, "part"]), split="part")
    for part, own in family._tasks_of.items():
        assert {said[task].lower() for task in own} == {part}
    assert family.counts == {"tasks_train": 20, "tasks_validation": 10, "tasks_test": 10, "tasks_left_out": 0}
    rows[3][-1] = "test"
    with pytest.raises(DataError, match=r"line 5: column 'part' says test for task 'p0', and train before"):
        build(write(tmp_path / "u.csv", rows, [*HEADER, "part"]), split="part")
    rows[3][-1] = "maybe"
    with pytest.raises(DataError, match=r"line 5: column 'part' says 'maybe'"):
        build(write(tmp_path / "v.csv", rows, [*HEADER, "part"]), split="part")


def test_small_tasks_are_left_out_and_counted(tmp_path: Path) -> None:
    small = patients(3, rows=4, first=1000) + patients(1, rows=5, first=2000)
    family = build(write(tmp_path / "t.csv", patients() + small))
    assert family.counts["tasks_left_out"] == 3
    assert "p2000" in family._members
    index = {f"p{i}" for i in range(1000, 1003)}
    assert not index & set(family._members)
    drawn = family._drawn("p2000", np.random.default_rng(0))
    assert len(drawn) == 9
    assert len(set(drawn[:4].tolist()) | {int(drawn[4])}) == 5
    assert set(drawn[4:].tolist()) == {int(drawn[4])}  # one row is left to judge by, and comes again


def test_scaling_sees_training_tasks_only(tmp_path: Path) -> None:
    table = patients()
    family = build(write(tmp_path / "a.csv", table))
    train_tasks = set(family._tasks_of["train"])
    kept = np.array([[row[1], row[2], row[4]] for row in table if row[0] in train_tasks])
    np.testing.assert_allclose(family.scaling.x_mean, kept[:, :2].mean(axis=0))
    np.testing.assert_allclose(family.scaling.x_std, kept[:, :2].std(axis=0))
    np.testing.assert_allclose(family.scaling.y_std, [kept[:, 2].std()])
    changed = [[*row[:4], row[4] + (0 if row[0] in train_tasks else 1e4)] for row in table]
    other = build(write(tmp_path / "b.csv", changed))
    assert other.scaling == family.scaling
    assert torch.equal(other._tensor(other._line(np.ones((1, 2)))), family._tensor(family._line(np.ones((1, 2)))))


def test_text_inputs_are_one_hot_and_stay_0_and_1(tmp_path: Path) -> None:
    family = build(write(tmp_path / "t.csv", patients()), inputs=["dose", "ward"])
    assert family.inputs == ["dose", "ward=north", "ward=south"]
    x = family.training_batch(0, 3)["support_x"][..., 1:]
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(x.sum(dim=-1), torch.ones(3, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("label", "classify", "classes"),
    [
        (lambda row: ["sick", "well", "dead"][row % 3], None, ["dead", "sick", "well"]),
        (lambda row: [10, 9, 2][row % 3], True, ["2", "9", "10"]),
        (lambda row: ["true", "false"][row % 2], None, ["false", "true"]),
    ],
)
def test_text_booleans_and_numbers_as_asked_are_classes(
    tmp_path: Path, label: Callable[[int], Any], classify: bool | None, classes: list[str]
) -> None:
    rows = [[*row[:4], label(i)] for i, row in enumerate(patients())]
    family = build(write(tmp_path / "t.csv", rows), classify=classify)
    assert family.objective.name == "classification"
    assert family.outputs == classes
    tasks = family.evaluation_batch("test", 5)
    assert torch.equal(tasks["query_y"].sum(dim=2), torch.ones(tasks["query_y"].shape[:2], dtype=torch.float64))
    found = family.baselines("test", 5)
    assert set(found) == {"majority", "task_majority"}
    torch.testing.assert_close(found["task_majority"][:, 0], tasks["support_y"].mean(dim=1))


def test_numbers_are_regressed_unless_classes_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [[*row[:4], i % 3] for i, row in enumerate(patients())])
    assert build(path).objective.name == "regression"
    assert build(path, classify=False).objective.name == "regression"
    assert build(path, targets=["reading", "dose"], inputs=["age"]).outputs == ["reading", "dose"]


def test_baselines_by_hand(tmp_path: Path) -> None:
    family = build(write(tmp_path / "t.csv", patients()))
    tasks, found = family.evaluation_batch("test", 5), family.baselines("test", 5)
    assert not found["zero"].any()
    mean = tasks["support_y"].mean(dim=1, keepdim=True).expand_as(tasks["query_y"])
    torch.testing.assert_close(found["task_mean"], mean)
    x, y = family._x[family._training_rows], family._y[family._training_rows]
    design = np.concatenate((x, np.ones((len(x), 1))), axis=1)
    weights = np.linalg.lstsq(design, y, rcond=None)[0]
    query = tasks["query_x"].numpy()
    expected = np.concatenate((query, np.ones((*query.shape[:2], 1))), axis=2) @ weights
    np.testing.assert_allclose(found["pooled_linear"].numpy(), expected, atol=1e-4)


def test_parquet_is_the_same_family(tmp_path: Path) -> None:
    table = patients()
    columns = {name: [row[i] for row in table] for i, name in enumerate(HEADER)}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    one, other = build(write(tmp_path / "t.csv", table)), build(tmp_path / "t.parquet")
    assert one.scaling == other.scaling
    assert torch.equal(one.training_batch(0, 4)["query_y"], other.training_batch(0, 4)["query_y"])
    columns["dose"][7] = None
    pa.parquet.write_table(pa.table(columns), tmp_path / "u.parquet")
    with pytest.raises(DataError, match=r": row 8: column 'dose' has no value"):
        build(tmp_path / "u.parquet")


@pytest.mark.parametrize(
    ("column", "value", "changes", "said"),
    [
        (2, "", {}, r"line 7: column 'dose' has no value: fill it, or leave the row out"),
        (4, "NaN", {}, r"line 7: column 'reading' has no value"),
        (0, "", {}, r"line 7: column 'patient' has no value"),
        (3, "", {"inputs": ["ward"]}, r"line 7: column 'ward' has no value"),
        (2, "1.5", {"inputs": ["age", "height"]}, r"there is no column 'height': the table has patient, age, dose"),
        (2, "1.5", {"shots": 12}, r"40 have fewer and are left out\) none is for train"),
        (2, "1.5", {"targets": ["ward"], "classify": False}, r"column 'ward' holds text, which can't be regressed"),
        (2, "1.5", {"targets": ["ward", "reading"]}, r"column 'ward' holds classes, and one column is classified"),
        (2, "1.5", {"targets": ["dose"], "inputs": ["age"], "classify": True}, r"different values, and at most 100"),
    ],
)
def test_data_that_cannot_serve_the_spec(
    tmp_path: Path, column: int, value: str, changes: dict[str, Any], said: str
) -> None:
    table = patients()
    table[5][column] = value
    with pytest.raises(DataError, match=said) as caught:
        build(write(tmp_path / "t.csv", table), **changes)
    assert str(DATASET) in str(caught.value)


def test_values_missing_in_columns_that_are_not_named_do_not_matter(tmp_path: Path) -> None:
    table = patients()
    table[5][3] = ""
    assert build(write(tmp_path / "t.csv", table)).in_features == 2


def test_a_target_that_never_differs_is_refused_and_an_input_is_not(tmp_path: Path) -> None:
    same = [[row[0], 50, *row[2:]] for row in patients()]
    family = build(write(tmp_path / "t.csv", same))
    assert not family.training_batch(0, 2)["support_x"][..., 0].any()
    with pytest.raises(DataError, match="'age' is 50 in every row of the training tasks"):
        build(write(tmp_path / "t.csv", same), inputs=["dose"], targets=["age"])


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"inputs": ["age", "age"]}, ("inputs",), "'age' is named twice"),
        ({"inputs": ["age", "reading"]}, ("targets",), "'reading' is among inputs already"),
        ({"split": "patient"}, ("split",), "'patient' is among task already"),
        ({"targets": ["a", "b"], "classify": True}, ("targets",), "one column is classified, not 2"),
        ({"test_share": 0.9}, ("test_share",), "leave less than a tenth to train on"),
    ],
)
def test_rules_of_the_spec(changes: dict[str, Any], field: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        spec(**changes)
    broken = caught.value.errors()[0]["ctx"]["error"]
    assert broken.field == field


def job(**parts: Any) -> JobSpec:
    family = spec().model_dump(mode="json")
    return JobSpec.model_validate_json(
        json.dumps(
            {
                "family": family,
                "model": {"hidden": [16]},
                "trajectory": {"length": 1.0},
                "solver": {"kind": "euler", "step": 0.1},
                "meta": {"iterations": 150, "tasks_per_batch": 8, "optimizer": {"lr": 0.01}},
                "evaluation": {"every": 150, "tasks": 30, "epochs": 20},
                "runtime": {"threads": 1, "device": "cpu"},
                **parts,
            }
        )
    )


def test_it_learns_and_the_file_adapts_in_the_tables_units(tmp_path: Path) -> None:
    table = patients(120)
    run = train(job(), {str(DATASET): write(tmp_path / "t.csv", table)})
    last = {name: points[-1][1] for name, points in run.metrics.items()}
    assert last["nrmse_flow"] < 0.5 * last["nrmse_pooled_linear"]
    assert last["nrmse_flow"] < 0.7 * last["nrmse_task_mean"]
    assert run.metrics["tasks_left_out"] == [(0, 0.0)]
    run.save(tmp_path / "init.safetensors")
    model = amaml.load(tmp_path / "init.safetensors")
    own = [row for row in table if row[0] == run.training.setup.family._tasks_of["test"][0]]  # type: ignore[attr-defined]
    x, y = [row[1:3] for row in own], [row[4] for row in own]
    adapted = amaml.adapt(model, x[:4], y[:4], units="raw")
    error = amaml.run.adaptation.predict(adapted, x[4:])[:, 0] - torch.tensor(y[4:])
    before = amaml.run.adaptation.predict(model, x[4:])[:, 0] - torch.tensor(y[4:])
    assert error.square().mean() < 0.5 * before.square().mean()


def test_validation_without_tasks_is_told_before_the_run(tmp_path: Path) -> None:
    family = {**spec().model_dump(mode="json"), "validation_share": 0.0}
    never = job(family=family, evaluation={"select": "validation"})
    with pytest.raises(DataError, match="none is for validation"):
        train(never, {str(DATASET): write(tmp_path / "t.csv", patients())})
