"""The OpenAPI document: complete, and true of what the API answers."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import jsonschema
import pytest

from amaml import spec
from amaml.adaptation_request import AdaptationRequest, AdaptationResult
from service.http import examples
from service.keys.scopes import SCOPES
from service.main import PUBLIC, app
from service.reference import page as reference_page
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
    "ratings": {"dataset": examples.DATASET_ID},
    "table": {"dataset": examples.DATASET_ID, "task": "patient", "inputs": ["dose"], "targets": ["reading"]},
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


def test_examples_are_valid() -> None:
    _validate(examples.SPEC, "JobSpec")
    _validate(examples.NEW_API_KEY, "NewKey")
    _validate(examples.NEW_WEBHOOK, "NewWebhook")
    _validate(examples.WEBHOOK_CHANGE, "WebhookChange")
    _validate(examples.WEBHOOK, "WebhookDocument")
    _validate(examples.WEBHOOK_WITH_SECRET, "WebhookWithSecret")
    for delivery in (examples.DELIVERY_WITH_BODY, examples.DELIVERY_PENDING):
        _validate(delivery, "DeliveryWithBody")
    _validate(examples.DELIVERY, "DeliveryDocument")
    _validate(examples.JOB, "JobDocument")
    _validate(examples.ADAPTATION_REQUEST, "AdaptationRequest")
    _validate(examples.ADAPTATION, "AdaptationWithResult")
    _validate(examples.ADAPTATION_QUEUED, "AdaptationWithResult")
    _validate(examples.ADAPTATION_LISTED, "AdaptationDocument")
    for value, name in (
        (examples.ATTEMPT, "AttemptDocument"), (examples.EVENT, "EventDocument"), (examples.DATASET, "DatasetDocument"),
        (examples.CHECKPOINT, "CheckpointDocument"), (examples.EVALUATION, "EvaluationDocument"),
        (examples.STUDY, "StudyDocument"), (examples.STUDY_DETAIL, "StudyDetail"), (examples.STUDY_REPORT, "StudyReport"),
        (examples.WORKER, "WorkerDocument"), (examples.API_KEY, "KeyDocument"),
    ):  # fmt: skip
        _validate(value, name)
    _validate(examples.NEW_STUDY, "NewStudy")
    spec.JobSpec.model_validate(examples.SPEC)
    AdaptationRequest.model_validate(examples.ADAPTATION_REQUEST)
    AdaptationResult.model_validate(examples.ADAPTATION["result"])


def test_messages_to_webhooks_are_described() -> None:
    message = DOCUMENT["webhooks"]["job"]["post"]
    assert message["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobEvent"}
    assert list(message["responses"]) == ["204"]
    job = examples.JOB
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
