"""Option checks: an adapter's options are a frozen, described pydantic model that refuses what it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from adapters.conformance.errors import ConformanceError
from adapters.conformance.subject import Subject


def are_frozen(subject: Subject) -> None:
    """Options are a frozen pydantic model: a run's manifest names what was trained with."""
    adapter = subject.adapter
    if not isinstance(adapter, BaseModel):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConformanceError(
            f"{type(adapter).__name__} is no pydantic model; derive it from `harness.adapter.Adapter`"
        )
    if not adapter.model_config.get("frozen"):
        raise ConformanceError("its options can be changed after they were read; keep `frozen=True` of `Adapter`")


def are_described(subject: Subject) -> None:
    """Every option has a description."""
    fields = type(subject.adapter).model_fields
    if bare := [name for name, field in fields.items() if not field.description]:
        raise ConformanceError(
            f"option {', '.join(bare)} has no description; say what it does in `Field(description=...)`"
        )


def refuse_unknown_keys(subject: Subject) -> None:
    """An option that does not exist is refused."""
    known = subject.adapter.model_dump()
    try:
        type(subject.adapter).model_validate({**known, "no_such_option": 1})
    except ValidationError:
        return
    raise ConformanceError("`no_such_option: 1` is taken without a word; keep `extra='forbid'` of `Adapter`")


def are_read_back(subject: Subject) -> None:
    """Options written out and read again are the same, defaults included."""
    again = type(subject.adapter).model_validate(subject.adapter.model_dump())
    if again != subject.adapter:
        raise ConformanceError(
            "its options, written out and read again, are others; a manifest could not repeat the run"
        )
