"""Joins the estimates of the parts of a batch of tasks into the estimate of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from amaml.adjoint.sensitivity import Wanted
from amaml.methods.amaml.gradient import Again, MetaGradient, NotAgain
from amaml.methods.certificate import Verdict
from amaml.methods.estimate import GradientEstimate, Stats
from amaml.methods.problem import Answer


def joined(parts: Sequence[GradientEstimate]) -> GradientEstimate:
    """The estimate of all tasks, in the order of the parts, as one solve of all of them gives it."""
    per_task = _joined_trees([part.per_task for part in parts])
    whole: dict[str, Any] = {
        "grad": _mean(per_task),
        "per_task": per_task,
        "loss": torch.cat([part.loss for part in parts]),
        "adapted": _joined_trees([part.adapted for part in parts]),
        "stats": _stats(torch.cat, [part.stats for part in parts]),
    }
    exact = [part for part in parts if isinstance(part, MetaGradient)]
    if len(exact) < len(parts):
        return GradientEstimate(**whole)
    return MetaGradient(
        **whole,
        certificate=None,
        _layout=exact[0]._layout,
        _answer=_joined_answers([part._answer for part in exact]),
        _again=AgainInParts([part._again for part in exact], [len(part.loss) for part in exact]),
    )


class AgainInParts(Again):
    """Repeats the solves of the parts one after another, for a batch that was solved in parts."""

    def __init__(self, parts: Sequence[Again | NotAgain], sizes: Sequence[int]) -> None:
        self._parts, self._sizes = parts, sizes

    def derivatives(self, wanted: AbstractSet[Wanted]) -> Answer:
        return _joined_answers([part.derivatives(wanted) for part in self._parts])

    def verdicts(self, answer: Answer) -> Iterator[Verdict]:
        start = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            yield from part.verdicts(_answer(lambda own, of=slice(start, start + size): own[0][of], [answer]))  # type: ignore[misc]
            start += size


_Combine = Callable[[list[Tensor]], Tensor]


def _joined_answers(answers: Sequence[Answer]) -> Answer:
    return _answer(torch.cat, answers)


def _answer(combine: _Combine, answers: Sequence[Answer]) -> Answer:
    """One answer, each of whose tensors combines those of the answers; None where one of them has None."""

    def of(name: str) -> Any:
        own = [getattr(answer, name) for answer in answers]
        return None if any(one is None for one in own) else combine(own)

    names = ("gradients", "losses", "adapted", "length", "rates", "proximal")
    return Answer(stats=_stats(combine, [answer.stats for answer in answers]), **{name: of(name) for name in names})


def _stats(combine: _Combine, stats: Sequence[Stats]) -> Stats:
    names = ("steps", "rejected", "gradients", "hvps", "lambda_max")
    return Stats(target=stats[0].target, **{name: combine([getattr(one, name) for one in stats]) for name in names})


def _joined_trees(trees: Sequence[Any]) -> Any:
    return tree_map(lambda *leaves: torch.cat(leaves), *trees)


def _mean(per_task: Any) -> Any:
    """The mean over the tasks, taken of one vector for each task so that it is rounded as in one solve of all tasks."""
    leaves, form = tree_flatten(per_task)
    mean = torch.cat([leaf.flatten(1) for leaf in leaves], dim=1).mean(dim=0)
    parts = torch.split(mean, [leaf[0].numel() for leaf in leaves])
    return tree_unflatten([part.reshape(leaf.shape[1:]) for part, leaf in zip(parts, leaves, strict=True)], form)
