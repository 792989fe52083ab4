"""Numbers as people read them."""

import math

_MISSING = "–"


def integer(value: float | None) -> str:
    """1,234,567"""
    return _MISSING if value is None else f"{round(value):,}"


def number(value: float | None, digits: int = 4) -> str:
    """A number with as many significant digits: 0.01235, 12.35, 12,346."""
    if value is None:
        return _MISSING
    if value == 0:
        return "0"
    decimals = min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), 8)
    return f"{value:,.{decimals}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share in percent with two significant digits, and 100 % or 0 % for nothing less than that."""
    if share is None:
        return _MISSING
    scaled = 100 * share
    if scaled in (0, 100):
        return f"{scaled:.0f} %"
    decimals = 0 if 10 <= scaled < 99.5 else 1 if 1 <= scaled < 10 else 2
    text = f"{scaled:.{decimals}f}"
    return f"{'< 0.01' if float(text) == 0 else '> 99.99' if float(text) >= 100 else text} %"


def seconds(value: float | None) -> str:
    """0.046 s, 3.25 s, 1:05, 2:03:04"""
    if value is None:
        return _MISSING
    if value < 60:
        return f"{number(value, 3)} s"
    return f"{clock(value)} {'h' if round(value) >= 3600 else 'min'}"


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def hours(value: float | None) -> str:
    """Hours, or minutes or seconds where there is less than one."""
    if value is None:
        return _MISSING
    if value >= 1:
        return f"{number(value, 3)} h"
    return f"{number(60 * value, 3)} min" if 60 * value >= 1 else f"{number(3600 * value, 3)} s"
