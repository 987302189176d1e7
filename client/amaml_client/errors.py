"""Everything that can go wrong, as one hierarchy:

* AmamlError
  x Unreachable            no answer: connection refused, cut, timed out
  x Problem                the server's answer was an error (RFC 9457); `code` is its machine word
    + Refused
      - Unauthenticated    no key, or one that doesn't hold
      - Forbidden          the key may not do this
      - NotFound           no such thing in this workspace
      - QuotaExceeded      too much or too often; `retry_after` says when again
    + Invalid              the request is at fault; `errors` point at its fields
    + Conflict             not in this state
    + ServerFailed         the server is at fault
  x JobEnded               the job didn't succeed
    + JobFailed
    + JobCancelled
  x StudyIncomplete        the study ended, and not all of its jobs succeeded
  x AdaptationFailed       the adaptation couldn't be done; its sentence says what to change
  x DatasetInvalid         the data set's check found it wrong; its `report` says where
  x NoInitialization       the job has none (yet)
  x ChecksumMismatch       the bytes aren't the ones announced
  x TimedOut               the job, study or adaptation didn't end, or the data set wasn't checked, in the time given
  x UnexpectedAnswer       a good answer that isn't this API's
  x SpecFileError          a spec file that can't be read
  x RowFileError           a file of a task's rows that can't be read
  x BadSettings            no server's address
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from amaml_client.results import Adaptation, Dataset, Job, Study


class AmamlError(Exception):
    """Base of all that this package raises on purpose; str() is a whole sentence."""


class Unreachable(AmamlError):
    def __init__(self, url: str, cause: Exception) -> None:
        super().__init__(
            f"no answer from {url} ({type(cause).__name__}: {cause}): start the server with `make up`, "
            "or name another one in AMAML_URL"
        )
        self.url = url


class FieldError(NamedTuple):
    detail: str
    pointer: str | None = None
    """JSON Pointer into the request's body, where that is at fault."""
    parameter: str | None = None
    """The query parameter, where that is at fault."""
    line: int | None = None
    """Line of the uploaded file, where that is at fault."""

    @property
    def place(self) -> str:
        if self.pointer is not None:
            return self.pointer or "/"
        return self.parameter or (f"line {self.line}" if self.line else "/")


class Problem(AmamlError):
    """An answer with an error status. `document` is the whole problem as the server sent it."""

    def __init__(self, status: int, document: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        self.document = dict(document)
        self.code = str(document.get("code", ""))
        self.detail = str(document.get("detail") or document.get("title") or f"status {status}")
        self.request_id = document.get("request_id")
        self.retry_after = retry_after
        self.errors = [
            FieldError(**{name: error[name] for name in FieldError._fields if name in error})
            for error in document.get("errors") or ()
        ]
        super().__init__("\n  ".join([self.detail, *(f"{error.place}: {error.detail}" for error in self.errors)]))


class Refused(Problem): ...


class Unauthenticated(Refused): ...


class Forbidden(Refused): ...


class NotFound(Refused): ...


class QuotaExceeded(Refused): ...


class Invalid(Problem): ...


class Conflict(Problem): ...


class ServerFailed(Problem): ...


class JobEnded(AmamlError):
    def __init__(self, job: Job) -> None:
        why = ": ".join(part for part in (job.status_reason, job.status_detail) if part)
        super().__init__(f"job {job.id} {job.state}" + (f": {why}" if why else ""))
        self.job = job


class JobFailed(JobEnded): ...


class JobCancelled(JobEnded): ...


class StudyIncomplete(AmamlError):
    def __init__(self, study: Study) -> None:
        counts = ", ".join(f"{count} {state}" for state, count in study.states.items())
        super().__init__(
            f"study {study.id} is {study.state}, and of its {study.cells} jobs not all succeeded: {counts}"
        )
        self.study = study


class AdaptationFailed(AmamlError):
    def __init__(self, adaptation: Adaptation) -> None:
        super().__init__(f"adaptation {adaptation.id} failed: {adaptation.status_reason}: {adaptation.status_detail}")
        self.adaptation = adaptation


class DatasetInvalid(AmamlError):
    def __init__(self, dataset: Dataset) -> None:
        errors = dataset.report.errors if dataset.report else []
        lines = [f"line {error.line}: {error.detail}" for error in errors]
        super().__init__("\n  ".join([f"data set {dataset.id} is invalid: {dataset.status_detail}", *lines[1:]]))
        self.dataset = dataset


class NoInitialization(AmamlError):
    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} is {job.state} and has no initialization: only a succeeded job has one")
        self.job = job


class ChecksumMismatch(AmamlError):
    def __init__(self, source: str, expected: str, found: str) -> None:
        super().__init__(
            f"{source}: sha256 {expected} was announced, {found} arrived; nothing was kept, so fetch it again"
        )


class TimedOut(AmamlError):
    def __init__(self, waited_for: Job | Dataset | Study | Adaptation, seconds: float) -> None:
        words = {"Job": "job", "Study": "study", "Adaptation": "adaptation", "Dataset": "data set"}
        what = words[type(waited_for).__name__]
        super().__init__(
            f"{what} {waited_for.id} is still {waited_for.state} after {seconds:g} s; it goes on: wait for it again"
        )
        self.waited_for = waited_for


class SpecFileError(AmamlError):
    """The file isn't readable as one JSON or YAML document of plain data; the sentence names file and line."""


class RowFileError(AmamlError):
    """The file isn't readable as a task's rows; the sentence names file and line."""


class UnexpectedAnswer(AmamlError):
    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"the answer to {path} isn't one of the A-MAML API ({why}): is another server at this address, "
            "or a newer one?"
        )


class BadSettings(AmamlError): ...


_BY_STATUS: dict[int, type[Problem]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    429: QuotaExceeded,
}
# Where the status alone would say less than the code does.
_BY_CODE: dict[str, type[Problem]] = {
    "quota_exceeded": QuotaExceeded,
}


def problem(status: int, document: Mapping[str, Any], retry_after: float | None = None) -> Problem:
    """The error for an answer: by its code, else by its status."""
    kind = _BY_CODE.get(str(document.get("code"))) or _BY_STATUS.get(status)
    if kind is None:
        kind = ServerFailed if status >= 500 else Invalid
    return kind(status, document, retry_after)
