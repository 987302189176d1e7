"""The adapter: the process that adapts learned initializations to tasks' rows, one request after another.

    python -m worker.adapter MEMORY_BYTES

It imports the mathematics, says that it is ready, and waits on its stdin for an `Adapt`; after each it says that it is ready
again. It computes on the CPU, keeps the networks that it loaded last, and may use so much memory beyond what it had when it
was ready first. It ends when its stdin does.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import tempfile
import traceback
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from amaml.adaptation_request import AdaptationCurve, AdaptationRequest, AdaptationResult
from worker.processes.failpoint import failpoint
from worker.processes.protocol import Accident, Adapt, Adapted, NotAdapted, Ready, to_adapter
from worker.processes.wire import Wire, die_with_the_worker, last_word, sentence, versions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from amaml.run.learned_model import LearnedModel

NETWORKS_KEPT: Final = 8
HOW: Final = {"by", "length", "epochs", "lr", "learned_rates"}
"""The part of a request that says how its rows are learned."""


class Diverged(Exception):
    """The parameters or the predictions aren't finite."""


def main() -> None:
    faulthandler.enable()
    die_with_the_worker()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a CUDA context would hold memory that jobs need
    wire = Wire()
    _warm_up()
    _bound_memory(int(sys.argv[1]))
    ready = Ready(versions=versions(), devices=["cpu"])
    wire.send(ready)
    for line in sys.stdin.buffer:
        order = to_adapter(line)
        try:
            last: Adapted | NotAdapted | Accident = _adapt(order)
        except Exception as error:  # noqa: BLE001 - whatever it was becomes the adaptation's reason
            last = last_word(error, "adapter", _failure)
        wire.send(last)
        failpoint("adapter.told_the_end")
        wire.send(ready)


def _warm_up() -> None:
    """Imports all that an adaptation needs, by doing a tiny one."""
    import torch  # noqa: PLC0415

    from amaml.registry import build_family, build_model  # noqa: PLC0415
    from amaml.run.initialization import metadata_of, write  # noqa: PLC0415
    from amaml.spec import JobSpec, MLPSpec, SinusoidSpec  # noqa: PLC0415

    spec = JobSpec(family=SinusoidSpec(test_tasks=1), model=MLPSpec(hidden=[2]))
    family = build_family(spec.family, seed=0, dtype=torch.float32, device=torch.device("cpu"), datasets={})
    model = build_model(spec.model, seed=0, in_features=1, out_features=1)
    rows: dict[str, Any] = {"x": [0.0, 1.0], "y": [0.0, 1.0]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "initialization"
        write(path, dict(model.named_parameters()), metadata_of(spec, family, 1))
        for by in ("flow", "finetune"):
            tiny = {"support": rows, "query": rows, "by": by, "return": ["predictions", "curve", "weights"]}
            _answer(AdaptationRequest.model_validate(tiny), str(path), Path(folder), "")
    _network.cache_clear()


def _adapt(order: Adapt) -> Adapted:
    import torch  # noqa: PLC0415

    torch.set_num_threads(order.threads)
    request = AdaptationRequest.model_validate_json(Path(order.request).read_bytes())
    failpoint("adapter.begins")
    return _answer(request, order.initialization, Path(order.folder), order.adaptation_id)


def _answer(request: AdaptationRequest, initialization: str, folder: Path, adaptation_id: str) -> Adapted:
    """Does one adaptation; its result and weights are written to files in the folder."""
    from amaml.run.adaptation import adapt, loss_curve, predict  # noqa: PLC0415

    learned = _network(initialization)
    model = learned.module
    how = request.model_dump(include=HOW)
    x, y = _inputs(learned, request.support.x), request.support.y
    query = None if request.query is None else _inputs(learned, request.query.x)
    adapted = adapt(model, x, y, units="raw", **how)
    if not all(bool(tensor.isfinite().all()) for tensor in adapted.parameters()):
        raise Diverged(
            "the adapted parameters became infinite or NaN: lower lr or length, or check the rows for outliers"
        )
    predictions = curve = weights = None
    if "predictions" in request.wanted and query is not None:
        found = predict(adapted, query)
        if not bool(found.isfinite().all()):
            raise Diverged("the predictions are infinite or NaN: lower lr or length, or check the rows for outliers")
        predictions = found.tolist()
    if "curve" in request.wanted:
        asked = request.query.y if request.query is not None else None
        losses = loss_curve(
            model, x, y, query=None if query is None or asked is None else (query, asked), units="raw", **how
        )
        curve = AdaptationCurve(
            over=losses.over, at=losses.at, support=list(losses.support), query=_or_none(losses.query)
        )
    if "weights" in request.wanted:
        weights = folder / "weights.safetensors"
        told = {"adaptation_id": adaptation_id, **how}
        _save(learned, adapted, weights, told)
    result = AdaptationResult(outputs=learned.outputs, predictions=predictions, curve=curve)
    path = folder / "result.json"
    path.write_text(result.model_dump_json())
    return Adapted(result=str(path), weights=None if weights is None else str(weights))


@lru_cache(maxsize=NETWORKS_KEPT)
def _network(initialization: str) -> LearnedModel:
    """The network in the file, which is kept for later requests: the file's name holds the hash of its content."""
    from amaml.run.learned_model import LearnedModel  # noqa: PLC0415

    return LearnedModel.read(initialization)


def _inputs(learned: LearnedModel, rows: list[Any]) -> Tensor | list[Any]:
    """The inputs as a tensor: rows of numbers as they are, names of inputs one-hot."""
    if not isinstance(rows[0], str):
        return rows
    import torch  # noqa: PLC0415

    number = {name: index for index, name in enumerate(learned.inputs)}
    return torch.eye(len(number))[[number[name] for name in rows]]


def _save(learned: LearnedModel, adapted: nn.Module, path: Path, told: dict[str, Any]) -> None:
    """A file like an initialization, of the adapted parameters: `amaml.load` reads it."""
    import json  # noqa: PLC0415

    from amaml.run.initialization import write  # noqa: PLC0415

    tensors = {**dict(adapted.named_parameters()), **learned.learned.logarithms}
    write(path, tensors, {**learned.metadata, "adapted": json.dumps(told, sort_keys=True)})


def _failure(error: Exception) -> NotAdapted:
    """The message for an adaptation that can't be done, with the sentence that is shown."""
    from amaml.flow.result import SolveError  # noqa: PLC0415
    from amaml.memory import is_out_of_memory  # noqa: PLC0415
    from amaml.run.initialization import InitializationError  # noqa: PLC0415

    if isinstance(error, SolveError):
        return NotAdapted(
            reason="solver_failed", detail=f"The flow couldn't be solved ({error.code.name.lower()}): {error}."
        )
    if isinstance(error, Diverged):
        return NotAdapted(reason="diverged", detail=sentence(str(error)))
    if is_out_of_memory(error):
        traceback.print_exception(error)
        detail = "It needed more memory than an adaptation may have: send fewer rows, or raise AMAML_ADAPTATION_MEMORY_BYTES."
        return NotAdapted(reason="out_of_memory", detail=detail)
    if isinstance(error, InitializationError):
        traceback.print_exception(error)
        why = "another version made it, or a family or model that this worker lacks"
        return NotAdapted(reason="bad_initialization", detail=f"The initialization can't be loaded: {why}. Train anew.")
    if isinstance(error, ValueError):
        return NotAdapted(reason="bad_rows", detail=sentence(str(error)))
    traceback.print_exception(error)
    return NotAdapted(reason="error", detail=sentence(f"The adaptation raised {type(error).__name__}: {error}"))


def _bound_memory(more: int) -> None:
    """Limits the process to so much private memory beyond what it has now; only on Linux, which counts it."""
    if sys.platform != "linux":
        return
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    bound = int(fields["VmData"].split()[0]) * 1024 + more
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


def _or_none(values: list[float] | None) -> list[float | None] | None:
    return None if values is None else list(values)


if __name__ == "__main__":
    main()
