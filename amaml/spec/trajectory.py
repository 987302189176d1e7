"""How long the inner flow runs. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from amaml.spec.part import Part, RuleBroken

Length = Annotated[float, Field(gt=0, le=10_000)]


class Horizon(Part):
    at: Length
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0


ScheduleEntry = Annotated[
    tuple[Annotated[int, Field(ge=0, strict=True)], Annotated[Length, Field(strict=True)]], Field(strict=False)
]


class TrajectorySpec(Part):
    length: Length = 2.0
    """The trajectory length T, the time for which the inner flow runs. With Euler steps of h it is T/h steps of gradient
    descent at learning rate h."""
    schedule: Annotated[list[ScheduleEntry], Field(min_length=1, max_length=1_000)] | None = None
    """[[iteration, T], …]: from that iteration on the trajectory has that length; before the first, `length`."""
    horizons: Annotated[list[Horizon], Field(min_length=1, max_length=64)] | None = None
    """Several lengths whose query losses are weighted and added, in one solve; instead of `length`."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if self.schedule is not None and self.horizons is not None:
            raise RuleBroken(
                "schedule and horizons exclude each other: give one of them and leave the other null", "horizons"
            )
        if self.schedule is not None:
            starts = [start for start, _ in self.schedule]
            if starts != sorted(set(starts)):
                raise RuleBroken(
                    f"schedule's iterations must increase strictly, got {starts}: sort them and drop repeats",
                    "schedule",
                )
        if self.horizons is not None:
            times = [horizon.at for horizon in self.horizons]
            if times != sorted(set(times)):
                raise RuleBroken(
                    f"horizons must increase strictly in `at`, got {times}: sort them and drop repeats", "horizons"
                )
        return self
