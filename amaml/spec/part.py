"""What every piece of a spec is, and how it says which field breaks a rule. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RuleBroken(ValueError):
    """A rule between fields is broken. `field` is the path, from the part that has the rule, to the field to change."""

    def __init__(self, sentence: str, *field: str) -> None:
        super().__init__(sentence)
        self.field = field


class Part(BaseModel):
    """A piece of a spec: unknown fields refused, strict types, no NaN, immutable."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )
