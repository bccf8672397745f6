"""Frequencies of time stamps: one reading of every alias pandas has used, old and new.

Pandas spells the same frequency differently in offsets and in periods, and has renamed most aliases between
2.1 and 3.0: `H` became `h`, `T` became `min`, `M` became `ME` for offsets and stayed `M` for periods.
`parse` takes any of the spellings on any pandas; a `Frequency` gives back the two the installed pandas takes.
"""

import re
from dataclasses import dataclass
from typing import Any

# unit -> (offset spelling, period spelling, older spellings of the same thing)
UNITS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "year": ("YE", "Y", ("Y", "A", "y", "a")),
    "year start": ("YS", "Y", ("AS",)),
    "business year": ("BYE", "Y", ("BY", "BA")),
    "business year start": ("BYS", "Y", ("BAS",)),
    "quarter": ("QE", "Q", ("Q", "q")),
    "quarter start": ("QS", "Q", ()),
    "business quarter": ("BQE", "Q", ("BQ",)),
    "business quarter start": ("BQS", "Q", ()),
    "month": ("ME", "M", ("M",)),
    "month start": ("MS", "M", ()),
    "business month": ("BME", "M", ("BM",)),
    "business month start": ("BMS", "M", ()),
    "custom business month": ("CBME", "M", ("CBM",)),
    "custom business month start": ("CBMS", "M", ()),
    "half month": ("SME", None, ("SM",)),
    "half month start": ("SMS", None, ()),
    "week": ("W", "W", ("w",)),
    "day": ("D", "D", ("d",)),
    "business day": ("B", "B", ("b",)),
    "custom business day": ("C", "B", ("c",)),
    "hour": ("h", "h", ("H",)),
    "business hour": ("bh", None, ("BH",)),
    "custom business hour": ("cbh", None, ("CBH",)),
    "minute": ("min", "min", ("T", "t", "MIN", "Min")),
    "second": ("s", "s", ("S",)),
    "millisecond": ("ms", "ms", ("L", "l")),
    "microsecond": ("us", "us", ("U", "u")),
    "nanosecond": ("ns", "ns", ("N", "n")),
}
SEASONALITY = {
    "second": 3600,
    "minute": 1440,
    "hour": 24,
    "business day": 5,
    "month": 12,
    "month start": 12,
    "quarter": 4,
    "quarter start": 4,
}
NANOSECONDS = {
    "week": 7 * 86400 * 10**9,
    "day": 86400 * 10**9,
    "hour": 3600 * 10**9,
    "minute": 60 * 10**9,
    "second": 10**9,
    "millisecond": 10**6,
    "microsecond": 10**3,
    "nanosecond": 1,
}
MONTHS = {"year": 12, "year start": 12, "quarter": 3, "quarter start": 3, "month": 1, "month start": 1}

_UNIT_OF = {spelling: unit for unit, (new, _, old) in UNITS.items() for spelling in (new, *old)}
_MONTH_NAMES = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_TERM = re.compile(r"(\d*)\s*([A-Za-z]+)(?:-([A-Za-z0-9]+))?\s*")


@dataclass(frozen=True)
class Frequency:
    """`multiple` steps of `unit` (a key of `UNITS`); `anchor` is the week's last day or the year's month."""

    unit: str
    multiple: int = 1
    anchor: str | None = None

    @property
    def offset_alias(self) -> str:
        """What `pd.tseries.frequencies.to_offset` and `pd.date_range` take, such as `15min` or `QE-MAR`."""
        return self._spell(UNITS[self.unit][0], self.anchor)

    @property
    def period_alias(self) -> str:
        """What `pd.Period(freq=...)` takes, such as `15min` or `Q-MAR`; `ValueError` where it has none."""
        alias = UNITS[self.unit][1]
        if alias is None:
            raise ValueError(f"expected a frequency that pandas periods know, got {self.offset_alias!r}")
        anchor = self.anchor
        if alias == "M" or alias == "B":
            anchor = None
        elif self.unit.endswith("start") and anchor is not None:
            # Offsets are anchored at the first month of a year or quarter, periods at the last.
            anchor = _MONTH_NAMES[_MONTH_NAMES.index(anchor) - 1]
        return self._spell(alias, anchor)

    @property
    def seasonality(self) -> int:
        """Steps in the natural season of this frequency: 24 for `h`, 96 for `15min`, 12 for `ME`, 1 for `D`.

        The convention of GIFT-Eval and the M competitions; 1 where the multiple does not divide the season.
        """
        season, remainder = divmod(SEASONALITY.get(self.unit, 1), self.multiple)
        return season if not remainder else 1

    def _spell(self, alias: str, anchor: str | None) -> str:
        return f"{'' if self.multiple == 1 else self.multiple}{alias}{'' if anchor is None else '-' + anchor}"


def parse(freq: Any) -> Frequency:
    """Read a frequency from an alias of any pandas version, an offset, a period's frequency or a `Frequency`.

    Compound aliases of fixed length (`1h30min`) come out in their smallest unit. Raises `ValueError` for
    anything else, unknown names and multiples below one among them.
    """
    if isinstance(freq, Frequency):
        return freq
    text = getattr(freq, "freqstr", freq)
    if not isinstance(text, str):
        raise ValueError(f"expected a frequency alias such as 'h', '15min' or 'ME', got {freq!r}")
    terms = _TERM.findall(text) if _TERM.sub("", text.strip()) == "" else []
    parts = [_term(text, *term) for term in terms]
    if not parts:
        raise ValueError(_unknown(text))
    return parts[0] if len(parts) == 1 else _compound(text, parts)


def seasonality(freq: Any) -> int:
    """Steps in the natural season of a frequency in any spelling; see `Frequency.seasonality`."""
    return parse(freq).seasonality


def _unknown(text: str) -> str:
    return f"unknown frequency {text!r}: expected a pandas alias such as 'h', '15min', 'D', 'W-SUN', 'ME' or 'QS'"


def _term(text: str, multiple: str, alias: str, anchor: str) -> Frequency:
    unit = _UNIT_OF.get(alias)
    if unit is None:
        raise ValueError(_unknown(text))
    if multiple and int(multiple) == 0:
        raise ValueError(f"expected a multiple of one or more in the frequency {text!r}")
    anchor = anchor.upper()
    if anchor and anchor not in _anchors(unit):
        expected = ", ".join(_anchors(unit)) or "none"
        raise ValueError(f"unknown anchor {anchor!r} in the frequency {text!r}: expected {expected}")
    return Frequency(unit, int(multiple or 1), anchor or None)


def _anchors(unit: str) -> tuple[str, ...]:
    if unit == "week":
        return _WEEKDAYS
    if "year" in unit or "quarter" in unit:
        return _MONTH_NAMES
    return tuple(str(day) for day in range(1, 28)) if "half" in unit else ()


def _compound(text: str, parts: list[Frequency]) -> Frequency:
    if any(part.unit not in NANOSECONDS or part.anchor for part in parts):
        raise ValueError(f"expected units of fixed length in the compound frequency {text!r}")
    smallest = min((part.unit for part in parts), key=NANOSECONDS.__getitem__)
    total = sum(part.multiple * NANOSECONDS[part.unit] for part in parts)
    return Frequency(smallest, total // NANOSECONDS[smallest])
