"""What a spec may name: task families, models, methods, solvers, each with a sentence and a JSON Schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from amaml import spec
from service.http.examples import example
from service.http.pages import Page
from service.http.replies import documented, json_reply
from service.keys.authentication import Caller, needs

router = APIRouter(prefix="/v1", tags=["catalogue"])


class KindDocument(BaseModel):
    kind: str
    """Its name in a spec."""
    summary: str
    json_schema: dict[str, Any] = Field(serialization_alias="schema")
    """The JSON Schema of its section of a spec."""


def _example(kind: str, summary: str) -> dict[str, Any]:
    properties = {"kind": {"const": kind, "type": "string"}}
    shown = example(KindDocument, kind=kind, summary=summary, json_schema={"type": "object", "properties": properties})
    return example(Page[KindDocument], data=[shown])


@router.get(
    "/families",
    dependencies=[needs("jobs:read")],
    response_model=Page[KindDocument],
    summary="Task families",
    responses=documented(example=_example("sinusoid", "y = a sin(x − φ)")),
)
def families(_: Caller) -> Response:
    """Families of related tasks. `family` in a spec is one of these."""
    return _listed("families")


@router.get(
    "/models",
    dependencies=[needs("jobs:read")],
    response_model=Page[KindDocument],
    summary="Models",
    responses=documented(example=_example("mlp", "Fully connected network.")),
)
def models(_: Caller) -> Response:
    """Networks. `model` in a spec is one of these."""
    return _listed("models")


@router.get(
    "/methods",
    dependencies=[needs("jobs:read")],
    response_model=Page[KindDocument],
    summary="Methods",
    responses=documented(example=_example("amaml", "Adjoint MAML.")),
)
def methods(_: Caller) -> Response:
    """Estimators of the meta-gradient. `method` in a spec is one of these."""
    return _listed("methods")


@router.get(
    "/solvers",
    dependencies=[needs("jobs:read")],
    response_model=Page[KindDocument],
    summary="Solvers",
    responses=documented(example=_example("dopri5", "Dormand–Prince 5(4).")),
)
def solvers(_: Caller) -> Response:
    """Solvers of the inner flow. `solver` in a spec is one of these."""
    return _listed("solvers")


_OFFERED: Final[dict[str, Callable[[], Mapping[str, type[Any]]]]] = {
    "families": spec.families,
    "models": spec.models,
    "methods": spec.methods,
}


@cache
def _kinds(what: str) -> Page[KindDocument]:
    if what == "solvers":
        schema = spec.SolverSpec.model_json_schema()
        kinds = [(kind, summary, _of_kind(schema, kind)) for kind, summary in spec.solvers().items()]
    else:
        offered = _OFFERED[what]()
        kinds = [(kind, cls.summary, cls.model_json_schema()) for kind, cls in offered.items()]
    return Page(data=[KindDocument(kind=kind, summary=summary, json_schema=schema) for kind, summary, schema in kinds])


def _of_kind(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    properties = {**schema["properties"], "kind": {**schema["properties"]["kind"], "enum": [kind], "default": kind}}
    return {**schema, "properties": properties}


def _listed(what: str) -> Response:
    return json_reply(_kinds(what))
