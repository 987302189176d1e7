"""The OpenAPI document: complete, and true of what the API answers."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import jsonschema
import pytest

from amaml import spec
from service.api import examples
from service.api.app import PUBLIC, app
from tests.service.conftest import SPEC, submit

DOCUMENT = app.openapi()
OPERATIONS = [
    pytest.param(path, method, operation, id=f"{method} {path}")
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_operation_is_explained(path: str, method: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    good = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
    assert "204" in operation["responses"] or any("example" in content for content in good["content"].values())
    if "requestBody" in operation:
        assert all("example" in content for content in operation["requestBody"]["content"].values())
    for parameter in operation.get("parameters", []):
        assert parameter["in"] == "path" or parameter.get("description") or parameter["name"] in ("family", "method")
    if path not in PUBLIC:
        assert operation["security"] == [{"API key": []}]
        assert {"401", "500", "503"} <= set(operation["responses"])
    for status, answer in operation["responses"].items():
        if int(status) >= 400:
            assert list(answer["content"]) == ["application/problem+json"]


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for operations in DOCUMENT["paths"].values() for operation in operations.values()]
    assert len(ids) == len(set(ids))


def _validate(value: Any, name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def test_examples_are_valid() -> None:
    _validate(examples.SPEC, "JobSpec")
    _validate(examples.JOB, "JobDocument")
    for value, name in (
        (examples.ATTEMPT, "AttemptDocument"), (examples.EVENT, "EventDocument"), (examples.DATASET, "DatasetDocument"),
        (examples.CHECKPOINT, "CheckpointDocument"), (examples.WORKER, "WorkerDocument"), (examples.API_KEY, "KeyDocument"),
    ):  # fmt: skip
        _validate(value, name)
    spec.JobSpec.model_validate(examples.SPEC)


def test_answers_are_what_the_schemas_say(http: httpx.Client) -> None:
    job_id = submit(http)
    _validate(http.get(f"/v1/jobs/{job_id}").json(), "JobDocument")
    _validate(http.get(f"/v1/jobs/{job_id}/events").json()["data"][0], "EventDocument")
    _validate(http.post("/v1/datasets", content=b"user,item,rating\n1,2,3\n").json(), "DatasetDocument")
    _validate(http.post("/v1/jobs", json={"x": 1}).json(), "ProblemDocument")
    _validate(http.get("/v1/nonsense").json(), "ProblemDocument")


@pytest.mark.parametrize(
    ("what", "offered"),
    [("families", spec.families), ("models", spec.models), ("methods", spec.methods), ("solvers", spec.solvers)],
)
def test_the_catalogue_says_what_a_spec_may_name(http: httpx.Client, what: str, offered: Any) -> None:
    answer = http.get(f"/v1/{what}").json()
    assert [item["kind"] for item in answer["data"]] == list(offered())
    for item in answer["data"]:
        assert item["summary"].endswith(".")
        jsonschema.Draft202012Validator.check_schema(item["schema"])
        part = {"kind": item["kind"]} | ({"dataset": examples.DATASET_ID} if item["kind"] == "ratings" else {})
        jsonschema.validate(part, item["schema"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"kind": "nonesuch"}, item["schema"])


def test_the_schema_has_the_bounds(http: httpx.Client) -> None:
    iterations = http.get("/openapi.json").json()["components"]["schemas"]["MetaSpec"]["properties"]["iterations"]
    assert (iterations["minimum"], iterations["maximum"]) == (1, 1_000_000)
    assert http.post("/v1/jobs", json={**SPEC, "meta": {"iterations": 1_000_001}}).status_code == 422
