"""Civil dates as tensors, so that a prior may depend on real weekdays and months."""

import torch
from torch import Tensor

DAY = 86400.0


def civil_from_days(days: Tensor) -> tuple[Tensor, Tensor]:
    """Month (1–12) and day of the month (1–31) of whole days since 1970-01-01 (int64), Gregorian."""
    # Count from 1 March of year 0, so that the leap day ends a year of months with a regular pattern.
    shifted = days + 719468
    era = shifted.div(146097, rounding_mode="floor")
    of_era = shifted - era * 146097
    leap_days = of_era // 1460 - of_era // 36524 + of_era // 146096
    year = (of_era - leap_days) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    return torch.where(month < 10, month + 3, month - 9), day


def weekday(days: Tensor) -> Tensor:
    """0 for Monday to 6 for Sunday; 1970-01-01 was a Thursday."""
    return torch.remainder(days + 3, 7)


def days_in_month(months: Tensor) -> Tensor:
    """28 to 31, for whole months since January 1970 (int64), Gregorian."""
    year, month = 1970 + months.div(12, rounding_mode="floor"), torch.remainder(months, 12)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    # From March on, months of 31 and 30 days alternate in two runs of five.
    ordinary = 30 + (torch.remainder(month - 2, 12) % 5 + 1) % 2
    return torch.where(month == 1, 28 + leap.long(), ordinary)
