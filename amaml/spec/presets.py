"""Presets: the fields that they fill in where a job spec leaves them out. Imports no torch.

`default` is the recipe that a search chose (docs/decisions/the-default-preset.md): Reptile first, which learns fast; then exact
gradients through the whole flow, with a learned rate for every parameter. `paper` is the setting of Li et al. (arXiv
2110.08432). A family says in `in_preset` where its own values differ, as those of noisy data do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from amaml.families.spec import FamilySpec
from amaml.spec.method import METHODS
from amaml.spec.part import Part, RuleBroken

Preset = Literal["default", "paper"]

_PARTS: Final = ("family", "trajectory", "solver", "meta", "evaluation")
_STEPS: Final = {
    "trajectory": {"length": 3.0},
    "solver": {"kind": "euler", "step": 0.05, "guard": False},
    "meta": {"tasks_per_batch": 5},
}
_PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "default": {
        **_STEPS,
        "phases": [
            {"method": {"kind": "reptile"}, "share": 0.4, "optimizer": {"lr": 1e-2, "schedule": "cosine"}},
            {
                "method": {"kind": "amaml", "learn": ["rates"]},
                "share": 0.6,
                "optimizer": {"lr": 1e-2, "schedule": "cosine"},
                "clip": {"per": "task", "at": "median"},
            },
        ],
        "updates": 13_000,
    },
    "paper": {
        **_STEPS,
        "method": {"kind": "amaml"},
        "meta": {"tasks_per_batch": 5, "iterations": 20_000, "optimizer": {"lr": 3e-3}},
    },
}
"""Parts of a spec; also `phases`, and `updates`, the length of the training in meta-iterations of Reptile."""
EVALUATIONS: Final = 5
"""Of a run, beside that of the start."""


def filled_in(data: dict[str, Any], families: Mapping[str, type[FamilySpec]]) -> dict[str, Any]:
    """The spec `data`, completed by its preset; unchanged if it has no preset, or if its parts aren't objects. Raises
    RuleBroken where preset and spec contradict each other."""
    if "preset" not in data and data.get("method") is None and data.get("meta") is None:
        data = {**data, "preset": "default"}
    parts = {part: _fields(data.get(part) or {}) for part in _PARTS}
    name, kind = data.get("preset"), (parts["family"] or {}).get("kind")
    if not isinstance(name, str) or name not in _PRESETS or not isinstance(kind, str) or kind not in families:
        return data
    if None in parts.values():
        return data
    says = _merged(_PRESETS[name], families[kind].in_preset.get(name, {}))
    own = {part: _merged(says.get(part, {}), parts[part] or {}) for part in ("family", "meta", "evaluation")}
    # Whole or not at all: their fields depend on each other.
    own |= {part: parts[part] or says[part] for part in ("trajectory", "solver")}
    method, meta = data.get("method") or says.get("method"), own["meta"]
    if method is not None:
        own["method"] = method
    if "phases" in says and meta.get("phases") is None:
        meta |= _trained_by(method, meta, says["phases"], name)
    if "iterations" not in meta:
        meta["iterations"] = _iterations(says["updates"], method, meta.get("phases"))
    if "every" not in own["evaluation"] and isinstance(meta["iterations"], int):
        own["evaluation"]["every"] = min(max(1, meta["iterations"] // EVALUATIONS), 1_000_000)
    return {**data, **own}


def _trained_by(method: Any, meta: dict[str, Any], phases: list[Any], name: str) -> dict[str, Any]:
    """The fields of `meta` that describe the training: the preset's phases; or, if the spec names a method, the last phase's
    optimizer and clip."""
    own = {field: meta[field] for field in ("optimizer", "clip") if meta.get(field) is not None}
    if method is not None:
        return {field: phases[-1][field] for field in ("optimizer", "clip")} | own
    if own:
        field = next(iter(own))
        raise RuleBroken(
            f"preset {name} trains in phases, each with its own {field}: give meta.phases with theirs, name one method, or set "
            "preset to null",
            "meta", field,
        )  # fmt: skip
    return {"phases": phases}


def _iterations(updates: int, method: Any, phases: Any) -> int:
    """The number of meta-iterations that takes as long as that of Reptile's. Invalid phases are reported elsewhere."""
    stages = (
        [_fields(phase) or {} for phase in phases] if isinstance(phases, list) else [{"method": method, "share": 1}]
    )
    shares = [(stage.get("share"), _cost(stage.get("method"))) for stage in stages]
    total = sum(share * cost for share, cost in shares if isinstance(share, int | float))
    return max(1, round(updates / total)) if 0 < total < math.inf else updates


def _cost(method: Any) -> float:
    kind = (_fields(method) or {}).get("kind", "amaml")
    return next((cls.cost for cls in METHODS if cls.model_fields["kind"].default == kind), 1.0)


def _merged(says: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The two merged field by field, recursively; where both have a field, that of `own` counts."""
    both = {**says, **own}
    for name in says.keys() & own.keys():
        if isinstance(says[name], Mapping) and isinstance(own[name], Mapping):
            both[name] = _merged(says[name], own[name])
    return both


def _fields(part: Any) -> dict[str, Any] | None:
    """The fields that were set in a part of a spec, which may be a JSON object or an instance; None for anything else."""
    if isinstance(part, Part):
        given = {name: getattr(part, name) for name in part.model_fields_set}
        return given | ({"kind": part.kind} if hasattr(part, "kind") else {})
    return dict(part) if isinstance(part, Mapping) else None
