"""Billing intervals. https://docs.stripe.com/billing/subscriptions/billing-cycle."""

import calendar
from datetime import UTC, datetime, timedelta
from typing import Any


def after_interval(start: int, terms: dict[str, Any], *, anchor: int | None = None) -> int:
    """The time one billing interval later; a month that is too short ends on its last day.

    :param anchor: what the day of the month is kept of, where `start` lies in a month that was too short for it
    """
    count = terms["interval_count"]
    begin = datetime.fromtimestamp(start, UTC)
    if terms["interval"] in {"day", "week"}:
        return int((begin + timedelta(days=count * (7 if terms["interval"] == "week" else 1))).timestamp())
    months = begin.month - 1 + count * (12 if terms["interval"] == "year" else 1)
    year, month = begin.year + months // 12, months % 12 + 1
    wanted = begin.day if anchor is None else datetime.fromtimestamp(anchor, UTC).day
    day = min(wanted, calendar.monthrange(year, month)[1])
    return int(begin.replace(year=year, month=month, day=day).timestamp())
