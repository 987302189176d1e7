"""The synthetic families: formulas in closed form, draws that depend on nothing but the seed, standardisation."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from amaml.families.base import Family, Tasks
from amaml.families.formula.family import SyntheticFamily
from amaml.families.formula.formulas import Alpine, CosMixture, Formula, Sinusoid
from amaml.families.points import judged_points
from amaml.families.scaling import Moments, Scaling
from amaml.randomness import generator, key
from amaml.registry import build_family
from amaml.spec import AlpineSpec, CosMixtureSpec, FamilySpec, SinusoidSpec

SPECS: list[FamilySpec] = [
    CosMixtureSpec(dim=2, shots=7, queries=5, train_tasks=20, test_tasks=6),
    AlpineSpec(dim=3, shots=7, queries=5, train_tasks=20, test_tasks=6),
    SinusoidSpec(shots=7, queries=5, train_tasks=20, test_tasks=6),
    SinusoidSpec(shots=7, queries=5, train_tasks=None, test_tasks=6),
]
NAMES = ["cosmixture", "alpine", "sinusoid", "sinusoid, fresh tasks"]
every_family = pytest.mark.parametrize("spec", SPECS, ids=NAMES)


def build(spec: FamilySpec, seed: int = 3, dtype: torch.dtype = torch.float64) -> Any:
    return build_family(spec, seed=seed, dtype=dtype, device=torch.device("cpu"), datasets={})


def equal(one: Tasks, other: Tasks) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_cosmixture_in_closed_form() -> None:
    formula = CosMixture(dim=2)
    x = np.array([[0.0, 0.0], [1.0, 0.5], [-1.0, 1.0]])
    # c=.5, φ=π/2, ω=3: cos(3πx + π/2) = −sin(3πx), which is 0 at whole x and 1 at x=½
    values = formula(np.array([0.5, np.pi / 2, 3.0]), x)
    np.testing.assert_allclose(values, [0.0, -0.5 * 1.0 - 1.25, -2.0], atol=1e-12)


def test_alpine_in_closed_form() -> None:
    formula = Alpine(dim=2)
    x = np.array([[0.0, 0.0], [np.pi / 2, -np.pi / 2]])
    # k=0: |−x sin x + x/10|;   k=6 adds a right angle: |−x cos x + x/10|
    values = formula(np.array([0.0, 6.0]), x)
    np.testing.assert_allclose(values, [0.0, np.pi / 2 * 0.9 + np.pi / 20], atol=1e-12)


def test_sinusoid_in_closed_form() -> None:
    values = Sinusoid()(np.array([2.0, np.pi / 6]), np.array([[np.pi / 6], [np.pi / 6 + np.pi / 2]]))
    np.testing.assert_allclose(values, [0.0, 2.0], atol=1e-12)


@pytest.mark.parametrize(
    ("formula", "low", "high"),
    [
        (CosMixture(2), [0.1, 0.5, 3.0], [1.0, 2.0, 6.0]),
        (Alpine(2), [-5.0, -5.0], [5.0, 5.0]),
        (Sinusoid(), [0.1, 0.0], [5.0, np.pi]),
    ],
)
def test_coefficients_fill_their_ranges(formula: Formula, low: list[float], high: list[float]) -> None:
    drawn = np.stack([formula.draw(generator(0, "coefficients", i)) for i in range(2000)])
    width = np.subtract(high, low)
    assert (drawn >= low).all()
    assert (drawn <= high).all()
    np.testing.assert_allclose((drawn.mean(axis=0) - low) / width, 0.5, atol=0.03)
    np.testing.assert_allclose(drawn.std(axis=0) / width, 1 / np.sqrt(12), atol=0.02)


@every_family
def test_batches_have_the_specs_shapes(spec: FamilySpec) -> None:
    family: Family = build(spec, dtype=torch.float32)
    tasks = family.training_batch(0, 4)
    d = family.in_features
    shapes = {name: tuple(tensor.shape) for name, tensor in tasks.items()}
    assert shapes == {
        "support_x": (4, 7, d), "support_y": (4, 7, 1), "query_x": (4, 5, d), "query_y": (4, 5, 1),
    }  # fmt: skip
    assert {tensor.dtype for tensor in tasks.values()} == {torch.float32}
    unseen = family.evaluation_batch("test", 100)
    assert len(unseen["support_x"]) == 6
    assert unseen["support_x"].shape[1] == 7
    for predicted in family.baselines("test", 4).values():
        assert predicted.shape == unseen["query_y"][:4].shape


@every_family
def test_a_batch_is_a_function_of_seed_and_iteration(spec: FamilySpec) -> None:
    one, other = build(spec), build(spec)
    first = [one.training_batch(iteration, 4) for iteration in range(5)]
    torch.manual_seed(99)
    np.random.default_rng().random(7)
    again = [other.training_batch(iteration, 4) for iteration in reversed(range(5))]
    assert all(equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert not equal(first[0], first[1])
    assert not equal(first[0], build(spec, seed=4).training_batch(0, 4))


@every_family
def test_unseen_tasks_are_always_the_same_and_apart(spec: FamilySpec) -> None:
    family = build(spec)
    before = family.evaluation_batch("test", 6)
    family.training_batch(3, 4)
    assert equal(before, family.evaluation_batch("test", 6))
    three = family.evaluation_batch("test", 3)
    assert equal(three, {name: tensor[:3] for name, tensor in before.items()})
    validation = family.evaluation_batch("validation", 6)
    assert not torch.equal(before["support_x"], validation["support_x"])
    assert not torch.equal(before["query_y"], validation["query_y"])


def test_training_tasks_are_fixed_in_number_but_their_points_change() -> None:
    family: SyntheticFamily = build(CosMixtureSpec(dim=1, shots=100, queries=3, train_tasks=1))
    batches = [family.training_batch(iteration, 1)["support_x"].flatten() for iteration in range(60)]
    seen = torch.cat(batches).unique()
    assert len(torch.cat(batches[:2]).unique()) > 150  # two draws of 100 out of 1000 rarely meet
    assert 900 < len(seen) <= 1000  # and all come out of one pool


def test_all_queries_are_the_whole_pool_of_a_task() -> None:
    family = build(CosMixtureSpec(dim=2, train_tasks=1, queries="all"))
    first, second = (family.training_batch(iteration, 1)["query_x"][0] for iteration in (0, 1))
    assert first.shape == (1000, 2)
    assert {tuple(point) for point in first.tolist()} == {tuple(point) for point in second.tolist()}
    with pytest.raises(ValidationError, match="name a number"):
        SinusoidSpec(queries="all")
    assert SinusoidSpec(queries="all", train_tasks=3).queries == "all"


def test_no_point_twice_in_a_set() -> None:
    family = build(CosMixtureSpec(dim=1, shots=1500, queries=1000, train_tasks=2))
    tasks = family.training_batch(0, 2)
    assert len(tasks["support_x"][0].unique()) == 1500
    assert len(tasks["query_x"][0].unique()) == 1000


def test_fresh_tasks_never_repeat() -> None:
    family = build(SinusoidSpec(shots=2, queries=2, train_tasks=None))
    points = torch.cat([family.training_batch(iteration, 5)["support_x"].flatten() for iteration in range(20)])
    assert len(points.unique()) == len(points)


@every_family
def test_standardised_on_training_tasks(spec: FamilySpec) -> None:
    family = build(spec)
    batches = [family.training_batch(iteration, 20) for iteration in range(60)]
    for name in ("support_x", "support_y"):
        values = torch.cat([batch[name] for batch in batches]).flatten(0, 1)
        assert values.mean(dim=0).abs().max() < 0.1
        assert (values.std(dim=0) - 1).abs().max() < 0.1


def test_scaling_sees_no_unseen_task() -> None:
    small, large = (build(CosMixtureSpec(train_tasks=20, test_tasks=n)) for n in (1, 50))
    assert small.scaling == large.scaling


def test_standardised_targets_are_the_formulas_values() -> None:
    family: SyntheticFamily = build(AlpineSpec(dim=2, train_tasks=3, test_tasks=2))
    tasks = family.evaluation_batch("test", 2)
    scaling = family.scaling
    for task in range(2):
        x = tasks["query_x"][task].numpy() * np.array(scaling.x_std) + np.array(scaling.x_mean)
        expected = Alpine(2)(family._pool("test", task).coefficients, x)
        np.testing.assert_allclose(scaling.raw_y(tasks["query_y"][task].numpy())[:, 0], expected, atol=1e-10)


def test_the_mean_function_of_one_task_is_that_task() -> None:
    family: SyntheticFamily = build(CosMixtureSpec(dim=1, train_tasks=1, test_tasks=2))
    predicted = family.baselines("test", 2)
    raw = family.scaling.raw_y(predicted["population_mean"][1].numpy())[:, 0]
    expected = CosMixture(1)(family._pool("train", 0).coefficients, np.linspace(-1, 1, 200)[:, None])
    np.testing.assert_allclose(raw, expected, atol=1e-10)
    assert not predicted["zero"].any()


def test_the_mean_function_beats_zero_where_tasks_share_a_shape() -> None:
    family = build(CosMixtureSpec(dim=2))
    target = family.evaluation_batch("test", 100)["query_y"]
    error = {name: (p - target).square().mean().item() for name, p in family.baselines("test", 100).items()}
    assert error["population_mean"] < 0.6 * error["zero"]


@pytest.mark.parametrize(("dim", "count"), [(1, 200), (2, 1024), (3, 1024), (10, 1024)])
def test_points_fill_the_box(dim: int, count: int) -> None:
    points = judged_points(dim, -10.0, 10.0)
    assert points.shape == (count, dim)
    assert points.min() >= -10
    assert points.max() <= 10
    assert len(np.unique(points, axis=0)) == count
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(points.std(axis=0), 20 / np.sqrt(12), rtol=0.05)


def test_a_million_tasks_cost_no_memory() -> None:
    tracemalloc.start()
    try:
        family = build(CosMixtureSpec(train_tasks=1_000_000, shots=5, queries=5))
        assert family.training_batch(0, 16)["support_x"].shape == (16, 5, 2)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000, "bytes: the tasks' points would take ten times as much"
    finally:
        tracemalloc.stop()


def test_more_tasks_a_batch_than_there_are() -> None:
    family = build(CosMixtureSpec(train_tasks=2, shots=5, queries=5))
    tasks = family.training_batch(0, 8)
    assert tasks["support_x"].shape == (8, 5, 2)
    assert len({tuple(row.flatten().tolist()) for row in tasks["support_x"]}) == 8  # a task again, other points


def test_moments_are_those_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal(1e6, 3.0, (1000, 2))
    moments = Moments()
    for block in np.split(rows, [10, 500]):
        moments.add(block)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.std, rows.std(axis=0), rtol=1e-9)


def test_scaling_and_back() -> None:
    scaling = Scaling((1.0, 2.0), (3.0, 4.0), (5.0,), (0.5,))
    y = torch.randn(7, 1)
    torch.testing.assert_close(scaling.raw_y(scaling.standardise_y(y)), y)
    np.testing.assert_allclose(scaling.standardise_x(np.array([[4.0, 6.0]])), [[1.0, 1.0]])


def test_draws_differ_by_each_argument_and_last() -> None:
    keys = {key(0, "a", 0), key(1, "a", 0), key(0, "b", 0), key(0, "a", 1), key(0, "a"), key(0, "a", 0, 0)}
    assert len(keys) == 6
    assert generator(7, "x", 1).integers(2**32) == generator(7, "x", 1).integers(2**32)
    # A value fixed for ever: a resumed run needs the same draws from the next release too.
    assert key(0, "model") == 135272315375892458
