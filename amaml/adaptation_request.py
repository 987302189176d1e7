"""The request and the result of an adaptation, shared by the HTTP API and the adapter. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from amaml.spec.part import Part, RuleBroken
from amaml.spec.trajectory import Length

MAX_ROWS: Final = 10_000
"""The most rows of a support or query set, which is also the bound of `shots` in a spec."""
LARGEST: Final = 1e30
"""The largest number in a row: larger ones could overflow float32 when they are squared or standardised."""

_NUMBER: Final = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
_ROWS: Final = {"type": "array", "minItems": 1, "maxItems": MAX_ROWS}

Inputs = Annotated[
    list[Any],
    Field(min_length=1, max_length=MAX_ROWS),
    WithJsonSchema(
        {**_ROWS, "anyOf": [{"items": {"type": "array", "items": _NUMBER}}, {"items": _NUMBER}, {"items": {"type": "string"}}]}
    ),
]  # fmt: skip
"""For each point a row of numbers; or a number where the network has one input; or the name of an input where the inputs are
one-hot (for ratings, the item's id). In raw units."""
Targets = Annotated[
    list[Any],
    Field(min_length=1, max_length=MAX_ROWS),
    WithJsonSchema({**_ROWS, "anyOf": [{"items": {"type": "array", "items": _NUMBER}}, {"items": _NUMBER}]}),
]
"""For each point a row of numbers, or a number where the network has one output. Where the network classifies: the index of the
point's class, or a row with the probability of each class. In raw units."""
Wanted = Literal["predictions", "curve", "weights"]


class Support(Part):
    """The rows that train the task."""

    x: Inputs
    """Inputs, in the data's own units: for each point a row of numbers, or a number where the network has one input, or the
    item's id where the family is ratings."""
    y: Targets
    """Targets, in the data's own units; where the network classifies, the index of each point's class among `outputs`."""


class Query(Part):
    """The rows that are asked about."""

    x: Inputs
    """Inputs, as in the support set."""
    y: Targets | None = None
    """Targets, if they are known: the curve then includes their loss."""


class AdaptationRequest(Part):
    """A task's rows, and how the learned initialization is adapted to them."""

    support: Support
    query: Query | None = None
    by: Literal["flow", "finetune"] = "flow"
    """`flow`: the inner flow that it was trained for. `finetune`: full-batch Adam, weight decay 1e-6."""
    length: Length | None = None
    """The length of the flow; null: the run's own T, or the learned one where it was learned."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """The epochs of fine-tuning; null: those of the run's evaluation."""
    lr: Annotated[float, Field(gt=0, le=100)] | None = None
    """The learning rate of fine-tuning; null: that of the run's evaluation."""
    learned_rates: bool | None = None
    """Whether each parameter is fine-tuned at lr times the rate that the run learned for it; null: as in the run's evaluation."""
    wanted: Annotated[list[Wanted], Field(alias="return", min_length=1, max_length=3)] = ["predictions"]  # noqa: RUF012 - pydantic copies it
    """What the answer contains: predictions at the query rows, the curve of the losses, the adapted weights as a file."""

    @model_validator(mode="after")
    def _options_of_its_way(self) -> Self:
        for name in ("length",) if self.by == "finetune" else ("epochs", "lr", "learned_rates"):
            if getattr(self, name) is not None:
                raise RuleBroken(f"{name} has no meaning with by {self.by!r}: leave it out, or change by", name)
        return self

    @model_validator(mode="after")
    def _rows_to_predict_at(self) -> Self:
        if "predictions" in self.wanted and self.query is None:
            raise RuleBroken(
                "predictions need rows to predict at: add query, or leave predictions out of return", "query"
            )
        return self


class AdaptationCurve(BaseModel):
    """The losses during the adaptation, which are those that the network was trained with: ½·mean squared error in standardised
    units, or cross-entropy."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    over: Literal["t", "epochs"]
    """The unit of `at`: the flow's time, or epochs of fine-tuning."""
    at: list[float]
    """From 0, the initialization itself, to the end."""
    support: list[float | None]
    """Null where the loss isn't a finite number."""
    query: list[float | None] | None
    """Null where the query's y wasn't given."""


class AdaptationResult(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    outputs: list[str]
    """The meaning of each number in a row of predictions: a quantity, or the class whose probability it is."""
    predictions: list[list[float]] | None
    """A row for each query point, in raw units; probabilities where the network classifies."""
    curve: AdaptationCurve | None
