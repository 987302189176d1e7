"""The base class of all parts of a spec, and the error for a broken rule. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RuleBroken(ValueError):
    """A rule between fields is broken. `field` is the path to the field to change, from the part that has the rule."""

    def __init__(self, sentence: str, *field: str) -> None:
        super().__init__(sentence)
        self.field = field


class Part(BaseModel):
    """A piece of a spec: unknown fields refused, strict types, no NaN, immutable."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )
