"""The dictionary that tokenizer, feature extractor and processor return."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class BatchFeature(dict[str, Any]):
    """A dictionary of model inputs whose entries are attributes too: `out["input_ids"]` is `out.input_ids`.

    It unpacks into a model call (`model.generate(**out)`), pickles, and moves to a device with `to`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no entry {name!r}; there are {', '.join(self) or 'none'}") from None

    @property
    def data(self) -> dict[str, Any]:
        """The entries as a plain dictionary."""
        return dict(self)

    def to(
        self,
        *args: str | int | torch.device | torch.dtype,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> "BatchFeature":
        """Move all tensors to `device` and cast floating-point ones to `dtype`, in place; returns itself.

        Both may be given by position, in any order: `out.to("cuda", torch.float16)`. Token ids and masks keep
        their integer types.

        Raises:
            TypeError: an argument is neither a device nor a dtype, or one of them is given twice.
        """
        for arg in args:
            if isinstance(arg, torch.dtype) and dtype is None:
                dtype = arg
            elif isinstance(arg, (str, int, torch.device)) and device is None:
                device = arg
            else:
                raise TypeError(f"to() takes one device and one dtype, got {arg!r} as well")
        for name, value in self.items():
            self[name] = _moved(value, device, dtype, non_blocking)
        return self


def _moved(
    value: Any, device: str | int | torch.device | None, dtype: torch.dtype | None, non_blocking: bool
) -> Any:
    if isinstance(value, Tensor):
        return value.to(
            device=device, dtype=dtype if value.is_floating_point() else None, non_blocking=non_blocking
        )
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device, dtype, non_blocking) for item in value)
    if isinstance(value, Mapping):
        return {name: _moved(item, device, dtype, non_blocking) for name, item in value.items()}
    return value
