"""The OpenAPI document: complete, and true of what the API answers."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import jsonschema
import pytest
from pydantic import BaseModel

from amaml import spec
from amaml.adaptation_request import AdaptationRequest, AdaptationResult
from amaml.spec import JobSpec
from service.adaptations.schemas import REQUEST_EXAMPLE, AdaptationWithResult
from service.http.examples import DATASET_ID, JOB_ID, example
from service.jobs.schemas import SPEC_EXAMPLE, JobDocument
from service.keys.endpoints import NewKey
from service.keys.scopes import SCOPES
from service.main import PUBLIC, app
from service.reference import page as reference_page
from service.studies.grid import expand
from service.studies.schemas import NewStudy
from service.webhooks.schemas import NewWebhook, WebhookChange
from tests.support.api import SPEC, submit

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
        (needed,) = operation["security"]
        assert set(needed["API key"]) < set(SCOPES)
        assert len(needed["API key"]) == 1
        assert {"401", "403", "429", "500", "503"} <= set(operation["responses"])
    for status, answer in operation["responses"].items():
        if int(status) >= 400:
            assert list(answer["content"]) == ["application/problem+json"]


NEEDED: dict[str, dict[str, Any]] = {
    "ratings": {"dataset": str(DATASET_ID)},
    "table": {"dataset": str(DATASET_ID), "task": "patient", "inputs": ["dose"], "targets": ["reading"]},
    "images": {"dataset": "digits"},
}
"""What a family can't do without."""


def test_the_page_lists_every_call_as_it_is() -> None:
    page = reference_page.PAGE.read_text(encoding="utf-8")
    assert page == reference_page.written(page, DOCUMENT), "run python -m service.reference.page"


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for operations in DOCUMENT["paths"].values() for operation in operations.values()]
    assert len(ids) == len(set(ids))


def _validate(value: Any, name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


EXAMPLES = [
    pytest.param(content["schema"], content["example"], id=f"{operation.id} {what}")
    for operation in OPERATIONS
    for what, described in [
        ("body", operation.values[2].get("requestBody", {})),
        *operation.values[2]["responses"].items(),
    ]
    for media_type, content in described.get("content", {}).items()
    if media_type == "application/json" and "schema" in content
]


def test_bodies_and_answers_have_examples() -> None:
    assert len(EXAMPLES) > 50


@pytest.mark.parametrize(("schema", "example"), EXAMPLES)
def test_examples_are_valid(schema: dict[str, Any], example: Any) -> None:
    schema = {**schema, "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(example)


def test_examples_of_what_is_sent_are_taken() -> None:
    JobSpec.model_validate(SPEC_EXAMPLE)
    AdaptationRequest.model_validate(REQUEST_EXAMPLE)
    AdaptationResult.model_validate(example(AdaptationWithResult)["result"])
    study = NewStudy.model_validate(example(NewStudy))
    assert len(expand(study.name, study.base, study.grid)) == 6
    for model in (NewKey, NewWebhook, WebhookChange):
        model.model_validate_json(json.dumps(example(model)))


def test_an_example_has_the_values_it_is_given() -> None:
    job = example(JobDocument, state="queued", started_at=None)
    assert (job["state"], job["started_at"], job["id"]) == ("queued", None, str(JOB_ID))


def test_a_field_that_suggests_nothing_needs_an_example() -> None:
    class Silent(BaseModel):
        word: str

    with pytest.raises(TypeError, match=r"Silent\.word has no example"):
        example(Silent)


def test_messages_to_webhooks_are_described() -> None:
    message = DOCUMENT["webhooks"]["job"]["post"]
    assert message["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobEvent"}
    assert list(message["responses"]) == ["204"]
    job = example(JobDocument)
    sent = {
        "type": "job.running",
        "timestamp": job["created_at"],
        "data": {name: job[name] for name in job if name != "spec"},
    }
    _validate(sent, "JobEvent")


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
        part = {"kind": item["kind"], **NEEDED.get(item["kind"], {})}
        jsonschema.validate(part, item["schema"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"kind": "nonesuch"}, item["schema"])


def test_the_schema_has_the_bounds(http: httpx.Client) -> None:
    iterations = http.get("/openapi.json").json()["components"]["schemas"]["MetaSpec"]["properties"]["iterations"]
    assert (iterations["minimum"], iterations["maximum"]) == (1, 1_000_000)
    assert http.post("/v1/jobs", json={**SPEC, "meta": {"iterations": 1_000_001}}).status_code == 422
