"""Dataclasses that hold their fields to what they are annotated with: types, choices, and ranges."""

import dataclasses
from functools import lru_cache
from typing import Annotated, Any, get_type_hints

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=1, lt=2**31)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(gt=0, le=1)]


class Checked:
    """For dataclasses: every field becomes a value of its annotated type, a list from JSON a tuple.

    Raises ValueError naming the first field whose value is none.
    """

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, adapter in _adapters(kind).items():
            value = getattr(self, name)
            if isinstance(value, np.integer):
                value = int(value)  # which would be rounded to a float on the way
            try:
                object.__setattr__(self, name, adapter.validate_python(value))
            except ValidationError as error:
                problem = error.errors()[0]["msg"]
                raise ValueError(f"{name}={value!r:.80} is out of range: {problem}") from None


@lru_cache
def _adapters(kind: Any) -> dict[str, TypeAdapter]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(kind)}
