"""From a spec to the thing it names: a family whose file couldn't be loaded again is refused before it trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest
import torch

from amaml.objectives import REGRESSION, Objective
from amaml.registry import build_family
from amaml.spec import FamilySpec, SinusoidSpec

OWN = replace(REGRESSION, name="own")


class NamelessSpec(FamilySpec):
    implementation: ClassVar[str] = "tests.amaml.families.test_objectives:build"
    summary: ClassVar[str] = "Its objective is its own, and it doesn't say where that is found."
    kind: Literal["nameless"] = "nameless"


class OtherSpec(NamelessSpec):
    objective: ClassVar[str | None] = "tests.amaml.families.test_objectives:other_objective"


class WholeSpec(NamelessSpec):
    objective: ClassVar[str | None] = "tests.amaml.families.test_objectives:own_objective"


def build(spec: FamilySpec, **how: Any) -> Any:
    family = build_family(SinusoidSpec(), **how)
    family.objective = OWN  # type: ignore[misc]
    return family


def own_objective(spec: FamilySpec) -> Objective:
    return OWN


def other_objective(spec: FamilySpec) -> Objective:
    return REGRESSION


def built(spec: FamilySpec) -> Any:
    return build_family(spec, seed=0, dtype=torch.float32, device=torch.device("cpu"), datasets={})


def test_a_family_with_an_objective_of_its_own_says_where_it_is_found() -> None:
    assert built(WholeSpec()).objective.name == "own"
    with pytest.raises(
        TypeError, match=r"nameless has an objective of its own, 'own', .* write objective: .* NamelessSpec"
    ):
        built(NamelessSpec())
    with pytest.raises(TypeError, match=r"has the objective 'own', and tests.* gives 'regression': make them one"):
        built(OtherSpec())
