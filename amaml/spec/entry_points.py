"""The families and models that installed packages offer, and the checks that each must pass. Imports no torch.

One that could only fail later (in the trainer, or when its file is loaded) is refused here, when it is registered. Modules that
may import torch are only looked for; what they are to hold, the trainer finds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar, get_args

from amaml.families.reader import READER_PARTS, reader_named
from amaml.spec.part import Part

Spec = TypeVar("Spec", bound=Part)


class EntryPointRefused(TypeError):
    """An installed package offers an incomplete family or model; the message names entry point, part and remedy."""


def with_entry_points(group: str, base: type[Spec], builtin: tuple[type[Spec], ...]) -> tuple[type[Spec], ...]:
    """The built-in spec classes and those that installed packages offer. Raises EntryPointRefused."""
    classes = list(builtin)
    for point in entry_points(group=group):
        cls = _loaded(point, base)
        _check(point, cls)
        if kind_of(cls) in map(kind_of, classes):
            _refuse(
                point, "kind", f"{kind_of(cls)!r} is offered already: choose another, or uninstall one of the packages"
            )
        classes.append(cls)
    return tuple(classes)


def kind_of(cls: type[Part]) -> str:
    """The `kind` that a spec class stands for."""
    return str(cls.model_fields["kind"].default)


def _loaded(point: EntryPoint, base: type[Spec]) -> type[Spec]:
    try:
        with _importing_no_torch(point, "class"):
            cls = point.load()
    except EntryPointRefused:
        raise
    except Exception as error:
        raise EntryPointRefused(
            f"entry point {point.name!r} of {point.group}: {point.value} can't be imported ({_said(error)}): "
            "repair or uninstall the package; its spec's module must not import JobSpec or the registry, which import it"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        _refuse(point, "class", f"{point.value} is {cls!r}: name a subclass of amaml.spec.{base.__name__}")
    return cls


def _check(point: EntryPoint, cls: type[Any]) -> None:
    """Checks the attributes that every class must have. Optional ones have defaults in the base class."""
    kind = cls.model_fields["kind"]
    if not isinstance(kind.default, str) or get_args(kind.annotation) != (kind.default,):
        _refuse(point, "kind", 'it is not fixed: write kind: Literal["NAME"] = "NAME"')
    if not isinstance(getattr(cls, "summary", None), str):
        _refuse(point, "summary", "there is none: write a sentence, summary: ClassVar[str]")
    for part in ("implementation", "objective"):
        named = getattr(cls, part, None)
        if named is not None or part == "implementation":
            _check_function(point, part, named)
    if getattr(cls, "reader", None) is not None:
        _check_reader(point, cls)


def _check_function(point: EntryPoint, part: str, named: Any) -> None:
    module, _, function = named.partition(":") if isinstance(named, str) else ("", "", "")
    if not all(name.isidentifier() for name in (*module.split("."), *function.split("."))):
        _refuse(point, part, f'{named!r} names no function: write {part}: ClassVar[str] = "module:function"')
    try:
        found = find_spec(module)
    except (ImportError, ValueError):  # of a package that the module is to be in
        found = None
    if found is None:
        _refuse(point, part, f"there is no module {module}: install it beside the spec, or correct the name")


def _check_reader(point: EntryPoint, cls: type[Any]) -> None:
    named = cls.reader
    try:
        with _importing_no_torch(point, "reader"):
            reader = reader_named(named)
    except EntryPointRefused:
        raise
    except Exception as error:
        raise EntryPointRefused(
            f"entry point {point.name!r} of {point.group}, reader: {named!r} can't be imported ({_said(error)}): "
            'write reader: ClassVar[str | None] = "module" or "module:object"'
        ) from error
    if "dataset" not in cls.model_fields:
        _refuse(point, "reader", "the spec has no field dataset: add one, which names the data set that is read")
    missing = [part for part, is_right in READER_PARTS.items() if not is_right(getattr(reader, part, None))]
    if missing:
        _refuse(point, "reader", f"{named} lacks {', '.join(missing)}: give it what amaml.families.reader.Reader says")


@contextmanager
def _importing_no_torch(point: EntryPoint, part: str) -> Iterator[None]:
    """Raises EntryPointRefused if loading the class imported torch, which the API must not pay for."""
    before = "torch" in sys.modules
    yield
    if "torch" in sys.modules and not before:
        _refuse(point, part, "its module imports torch: leave that to the modules of implementation and objective")


def _refuse(point: EntryPoint, part: str, what: str) -> NoReturn:
    raise EntryPointRefused(f"entry point {point.name!r} of {point.group}, {part}: {what}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
