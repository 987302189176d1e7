"""Examples of what the API takes and gives, for its reference, made from the models themselves."""

from __future__ import annotations

from datetime import datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

JOB_ID: Final = UUID("0199aa10-7c1e-7d58-8d2a-9a4f0c5b1e22")
DATASET_ID: Final = UUID("0199aa0f-1b2c-7e3d-9f40-51627384a5b6")
STUDY_ID: Final = UUID("0199aa0c-2233-7445-8667-8899aabbccdd")
SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_ID: Final = UUID("0199aa0e-0a1b-7c2d-8e3f-405162738495")
_TIME: Final = "2026-01-15T12:00:00.000000Z"


def example(model: type[BaseModel], **changes: Any) -> dict[str, Any]:
    """A document of the model: each field's own example, else its default, else what its type suggests.

    `changes` are fields that are to have other values. Raises TypeError for a field that needs an example of its own.
    """
    shown = {}
    for name, field in model.model_fields.items():
        value = changes[name] if name in changes else _of_field(f"{model.__name__}.{name}", field)
        shown[field.serialization_alias or name] = value
    return dict(to_jsonable_python(shown))


def _of_field(name: str, field: FieldInfo) -> Any:
    if field.examples:
        return field.examples[0]
    default = field.get_default(call_default_factory=True, validated_data={})
    return _of_type(name, field.annotation) if default is PydanticUndefined else default


def _of_type(name: str, annotation: Any) -> Any:
    """null where it is allowed, unless a model may stand there."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return example(annotation)
    if origin is Annotated:
        return _of_type(name, arguments[0])
    if origin in (Union, UnionType):
        models = [one for one in arguments if isinstance(one, type) and issubclass(one, BaseModel)]
        return example(models[0]) if models else None
    if origin is Literal:
        return arguments[0]
    if origin is list:
        return [_of_type(name, arguments[0])]
    suggested = {UUID: _ID, datetime: _TIME, bool: True, NoneType: None}
    if annotation not in suggested:
        raise TypeError(f"{name} has no example: give it one, with Field(examples=[…])")
    return suggested[annotation]
