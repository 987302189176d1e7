"""The ratings family: which items and users, what a batch holds, standardisation, baselines, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch

from amaml.families.base import DataError
from amaml.families.ratings.family import RatingsFamily, read_table, shrinkage
from amaml.registry import build_family
from amaml.spec import RatingsSpec

DATASET = UUID("0198b2a0-0000-7000-8000-000000000001")
Rating = tuple[str, str, float]


def spec(**changes: Any) -> RatingsSpec:
    return RatingsSpec(**({"dataset": DATASET, "items": 6, "shots": 2, "queries": 3, "test_tasks": 4} | changes))


def additive(users: int = 40, items: int = 8, noise: float = 0.0, seed: int = 0) -> list[Rating]:
    """Every user rates all items but one, as 3 + user effect + item effect + noise; later items are rated less."""
    random = np.random.default_rng(seed)
    user_effect, item_effect = random.normal(0, 1, users), random.normal(0, 0.5, items)
    return [
        (f"u{u}", f"i{i}", float(3 + user_effect[u] + item_effect[i] + noise * random.normal()))
        for u in range(users)
        for i in range(items)
        if i != items - 1 - u % 3
    ]


def write(path: Path, ratings: list[Rating]) -> Path:
    path.write_text("user,item,rating\n" + "".join(f"{u},{i},{r!r}\n" for u, i, r in ratings))
    return path


def build(path: Path, seed: int = 0, **changes: Any) -> RatingsFamily:
    family = build_family(
        spec(**changes),
        seed=seed,
        dtype=torch.float64,
        device=torch.device("cpu"),
        datasets={str(DATASET): path},
    )
    assert isinstance(family, RatingsFamily)
    return family


def decoded(family: RatingsFamily, x: torch.Tensor, y: torch.Tensor) -> list[list[tuple[str, float]]]:
    """Each task's (item, raw rating) pairs."""
    assert torch.equal(x.sum(dim=2), torch.ones(x.shape[:2], dtype=x.dtype))
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    items = x.argmax(dim=2).tolist()
    raw = family.scaling.raw_y(y)[..., 0].tolist()
    return [[(family.inputs[i], r) for i, r in zip(*task, strict=True)] for task in zip(items, raw, strict=True)]


def test_items_are_the_most_rated(tmp_path: Path) -> None:
    ratings = [("a", "z", 1.0), ("b", "z", 2.0), ("c", "z", 1.0), ("a", "m", 3.0), ("b", "m", 1.0), ("c", "k", 1.0)]
    ratings += [("b", "k", 2.0), ("a", "once", 1.0)]
    table = read_table(ratings, spec(items=3, shots=1, queries=1, test_tasks=1))
    assert table.names == ["z", "k", "m"]  # k and m are rated twice each: by name
    assert table.users == 3
    of_user_b = slice(table.starts[1], table.starts[2])
    assert table.items[of_user_b].tolist() == [0, 1, 2]
    assert table.values[of_user_b].tolist() == [2.0, 2.0, 1.0]


def test_only_users_with_enough_ratings_are_tasks(tmp_path: Path) -> None:
    few = [("few", f"i{i}", 1.0) for i in range(4)]
    family = build(write(tmp_path / "r.csv", additive() + few))
    assert family._table.users == 40


def test_batches_hold_the_files_ratings(tmp_path: Path) -> None:
    ratings = additive()
    truth = {(user, item): rating for user, item, rating in ratings}
    by_item_and_rating = {(item, round(rating, 9)): user for (user, item), rating in truth.items()}
    family = build(write(tmp_path / "r.csv", ratings))
    tasks = family.training_batch(0, 5)
    support = decoded(family, tasks["support_x"], tasks["support_y"])
    query = decoded(family, tasks["query_x"], tasks["query_y"])
    for own_support, own_query in zip(support, query, strict=True):
        assert len(own_support) == 2
        assert len(own_query) == 3
        items = [item for item, _ in own_support + own_query]
        assert len(set(items)) == 5  # the query ratings are held out
        assert len({by_item_and_rating[item, round(r, 9)] for item, r in own_support + own_query}) == 1


def test_users_are_apart_and_draws_repeat(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", additive())
    family = build(path)
    users = {split: set(own.tolist()) for split, own in family._users.items()}
    assert [len(users[split]) for split in ("test", "validation", "train")] == [4, 3, 33]
    assert len(set.union(*users.values())) == 40
    again = build(path)
    again.training_batch(5, 3)
    for one, other in (
        (family.evaluation_batch("test", 4), again.evaluation_batch("test", 4)),
        (family.training_batch(2, 4), again.training_batch(2, 4)),
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    three = family.evaluation_batch("test", 3)
    assert torch.equal(three["query_y"], family.evaluation_batch("test", 4)["query_y"][:3])
    assert set(build(path, seed=1)._users["test"].tolist()) != users["test"]


def test_lines_in_another_order_are_the_same_family(tmp_path: Path) -> None:
    ratings = additive()
    one = build(write(tmp_path / "a.csv", ratings))
    other = build(write(tmp_path / "b.csv", ratings[::-1]))
    assert one.inputs == other.inputs
    assert one.scaling == other.scaling
    assert torch.equal(one.training_batch(0, 4)["query_y"], other.training_batch(0, 4)["query_y"])


def test_scaling_sees_training_users_only(tmp_path: Path) -> None:
    ratings = additive()
    family = build(write(tmp_path / "a.csv", ratings))
    names = sorted({user for user, _, _ in ratings})
    held = {names[u] for split in ("test", "validation") for u in family._users[split]}
    changed = [(u, i, r + 100 * (u in held)) for u, i, r in ratings]
    other = build(write(tmp_path / "b.csv", changed))
    assert other.scaling == family.scaling
    assert torch.equal(other.baselines("test", 4)["item_mean"], family.baselines("test", 4)["item_mean"])
    kept = [r for u, i, r in ratings if u not in held and i in family.inputs]
    np.testing.assert_allclose(family.scaling.y_mean, [np.mean(kept)])
    np.testing.assert_allclose(family.scaling.y_std, [np.std(kept)])


def test_the_later_of_two_ratings_of_one_item_counts() -> None:
    ratings = [("a", "x", 1.0), ("a", "y", 2.0), ("a", "x", 5.0), ("b", "x", 3.0), ("b", "y", 4.0), ("c", "x", 0.0)]
    table = read_table([*ratings, ("c", "y", 0.0)], spec(items=2, shots=1, queries=1, test_tasks=1))
    assert table.values.tolist() == [5.0, 2.0, 3.0, 4.0, 0.0, 0.0]


def test_baselines_by_hand(tmp_path: Path) -> None:
    family = build(write(tmp_path / "r.csv", additive(noise=0.3)))
    tasks, predicted = family.evaluation_batch("test", 4), family.baselines("test", 4)
    expected = tasks["support_y"].mean(dim=1, keepdim=True).expand_as(tasks["query_y"])
    torch.testing.assert_close(predicted["user_mean"], expected)
    rows = np.isin(family._table.owners, family._users["train"])
    item = int(tasks["query_x"][0, 0].argmax())
    mean = family._values[rows & (family._table.items == item)].mean()
    assert predicted["item_mean"][0, 0, 0].item() == pytest.approx(mean)
    assert not predicted["zero"].any()


def test_both_effects_explain_additive_ratings(tmp_path: Path) -> None:
    family = build(write(tmp_path / "r.csv", additive(users=200)), test_tasks=30)
    target = family.evaluation_batch("test", 30)["query_y"]
    error = {n: (p - target).square().mean().sqrt().item() for n, p in family.baselines("test", 30).items()}
    assert error["user_item_effects"] < 0.15
    assert error["user_item_effects"] < min(error["user_mean"], error["item_mean"]) < error["zero"]


@pytest.mark.parametrize(("between", "within"), [(1.0, 2.0), (0.5, 0.5)])
def test_shrinkage_finds_the_ratio_of_variances(between: float, within: float) -> None:
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(3000), 5)
    values = random.normal(0, between, 3000)[groups] + random.normal(0, within, len(groups))
    assert shrinkage(groups, values, 3001) == pytest.approx(within**2 / between**2, rel=0.1)


def test_shrinkage_of_groups_that_do_not_differ_is_total() -> None:
    groups = np.repeat(np.arange(10), 2)
    values = np.tile([1.0, -1.0], 10)
    assert shrinkage(groups, values, 10) == float("inf")
    assert shrinkage(np.arange(5), np.arange(5.0), 5) == float("inf")  # one value each tells nothing


def test_published_movielens_format(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text("".join(f"{u}\t{i}\t{round(r)}\t881250949\n" for u, i, r in additive()))
    assert build(path).in_features == 6


def test_train_tasks_bounds_the_training_users(tmp_path: Path) -> None:
    assert len(build(write(tmp_path / "r.csv", additive()), train_tasks=5)._users["train"]) == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"items": 9}, "rates 8 items, family.items asks for 9"),
        ({"shots": 4, "queries": 3}, "0 of its 40 users have the 7 ratings"),
        ({"test_tasks": 39}, "lower family.shots"),
        ({"train_tasks": 34}, "at least 34 training users"),
    ],
)
def test_data_that_cannot_serve_the_spec(tmp_path: Path, changes: dict[str, int], said: str) -> None:
    path = write(tmp_path / "r.csv", additive())
    with pytest.raises(DataError, match=said) as caught:
        build(path, **changes)
    assert str(DATASET) in str(caught.value)


def test_ratings_that_are_all_alike(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every rating of the training users is 1"):
        build(write(tmp_path / "r.csv", [(u, i, 1.0) for u, i, _ in additive()]))


def test_a_data_set_that_was_not_given() -> None:
    with pytest.raises(DataError, match="was not given"):
        build_family(spec(), seed=0, dtype=torch.float32, device=torch.device("cpu"), datasets={})


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", additive())
    path.write_text(path.read_text() + "u1,i1,nonsense\n")
    with pytest.raises(DataError, match=r"line 282"):
        build(path)
