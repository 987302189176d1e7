"""Certificates during a run: they are metrics, and end a run whose meta-gradients are too far from right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from amaml.methods import certificate
from amaml.run.training import CertificateFailed, TimedOut, Training, train
from amaml.spec import JobSpec
from tests.amaml.jobs import small


def test_certificates_are_among_the_metrics() -> None:
    run = train(small(meta={"iterations": 4}, runtime={"certify_every": 2}, evaluation={"epochs": 1}))
    assert [step for step, _ in run.metrics["certificate_error"]] == [2, 4]
    assert all(0 < value < 1e-3 for _, value in run.metrics["certificate_error"])


def test_a_run_can_be_stopped_during_a_certificate(tmp_path: Path) -> None:
    spec = small(meta={"iterations": 3, "tasks_per_batch": 3}, runtime={"certify_every": 2}, evaluation={"epochs": 1})
    training, amid = Training.start(spec), []
    for report in training:
        if report.phase == "training" and not report.metrics:
            amid.append(report.iteration)
            training.save_checkpoint(tmp_path / str(len(amid)))
    assert amid == [1, 1, 1]  # the second meta-iteration, whose three tasks are certified, isn't done yet
    for number in (1, 2, 3):
        resumed = Training.resume(spec, tmp_path / str(number))
        certified = [report.metrics["certificate_error"] for report in resumed if "certificate_error" in report.metrics]
        assert len(certified) == 1
        for name, tensor in training.initialization.items():
            assert torch.equal(resumed.initialization[name], tensor)


def test_the_time_limit_is_checked_during_a_certificate() -> None:
    spec = small(meta={"iterations": 1, "tasks_per_batch": 3}, runtime={"certify_every": 1, "max_seconds": 1e-6})
    training = Training.start(spec)
    training._check_time = lambda: None  # type: ignore[method-assign]
    reports = iter(training)
    while next(reports).metrics:
        pass
    del training._check_time
    with pytest.raises(TimedOut, match="after 0 of 1 meta-iterations"):
        next(reports)


def rough(**runtime: Any) -> JobSpec:
    """A job whose certificates are large, since they refer to the flow, from which Euler's steps of 0.1 are far."""
    return small(
        method={"adjoint": {"kind": "interpolated", "scheme": "euler"}},
        meta={"iterations": 9, "tasks_per_batch": 1},
        evaluation={"every": 100, "epochs": 1},
        runtime={"certify_every": 2, **runtime},
    )


def test_three_certificates_over_the_limit_fail_the_run_resumed_or_not(tmp_path: Path) -> None:
    spec = rough(certify_limit=1e-5)
    training, reports = Training.start(spec), []

    def run() -> None:
        for report in training:
            reports.append(report)
            if report.iteration in (5, 6):
                training.save_checkpoint(tmp_path / str(report.iteration))

    with pytest.raises(CertificateFailed, match=r"limit \(1e-05\) in 3 .* 6 of 9.*: lower") as failure:
        run()
    marks = {one.iteration: one.metrics.get("certificate_over_limit") for one in reports if one.phase == "training"}
    assert marks == {1: None, 2: 1.0, 3: None, 4: 1.0, 5: None, 6: 1.0}
    for before in (5, 6):
        resumed = Training.resume(spec, tmp_path / str(before))
        with pytest.raises(CertificateFailed) as again:
            list(resumed)
        assert resumed.iteration == 6
        assert str(again.value) == str(failure.value)


def test_infinite_certificates_fail_the_run_with_their_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "MOST_EVALUATIONS", 20)
    spec = small(
        solver={"kind": "dopri5", "step": None},
        meta={"iterations": 5},
        runtime={"certify_every": 1},
    )
    training = Training.start(spec)
    for report in training:
        if report.iteration == 3:
            break
    training.save_checkpoint(tmp_path / "3")
    with pytest.raises(CertificateFailed, match=r"3 of 5 \(it is infinite: task 0: .*budget.*\): lower") as failure:
        list(training)
    assert len(caplog.messages) == 3
    assert all("budget" in message for message in caplog.messages)
    with pytest.raises(CertificateFailed) as again:
        list(Training.resume(spec, tmp_path / "3"))
    assert str(again.value) == str(failure.value)


def test_certificates_over_the_limit_now_and_then_fail_nothing() -> None:
    errors = [error for _, error in train(rough()).metrics["certificate_error"]]
    middle = sorted(errors)[1]  # two of the four are above it
    run = train(rough(certify_limit=middle))
    assert [mark for _, mark in run.metrics["certificate_over_limit"]] == [float(error > middle) for error in errors]
    assert sum(mark for _, mark in run.metrics["certificate_over_limit"]) == 2
