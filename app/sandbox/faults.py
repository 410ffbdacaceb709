"""Faults: what a test asks a stand-in to do wrong, and with which requests."""

import re
from dataclasses import dataclass, field
from typing import Any

from app.sandbox.json_object import JsonObject

SERVICES = ("stripe", "key-service", "runs-service")
KINDS = ("status", "json", "locked", "html", "redirect", "delay", "hang", "drip", "drip_headers", "half_body", "reset")
DEFAULT_STATUS = {"status": 500, "locked": 429, "redirect": 302}
DEFAULT_SECONDS = {"hang": 30.0, "drip": 0.2, "drip_headers": 0.2, "delay": 1.0}


@dataclass
class Fault:
    """What goes wrong, for `times` matching requests (0: until cleared) after the first `skip` of them.

    :param kind: `locked` is Stripe's word for an object that another request holds
    :param executed: whether the operation is done although its answer goes wrong
    :param seconds: hang, delay: how long; drip, drip_headers: the pause between two bytes
    :param every: 2 spares each other matching request, 3 two of three; `seen` counts them
    """

    service: str
    kind: str
    method: str | None = None
    path: str = ""
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    executed: bool = False
    times: int = 1
    skip: int = 0
    every: int = 1
    seen: int = 0
    id: str = ""

    @classmethod
    def from_json(cls, given: JsonObject) -> "Fault":
        """Read a fault as the control API takes it.

        :raises ValueError: when it makes no sense; its message says what is wrong
        """
        unknown = sorted(set(given) - set(vars(cls("", ""))))
        if unknown:
            raise ValueError(f"A fault has no {', '.join(unknown)}.")
        kind = str(given.get("kind"))
        defaults = {"status": DEFAULT_STATUS.get(kind, 200), "seconds": DEFAULT_SECONDS.get(kind, 0.0)}
        fault = cls(**{"service": None, "kind": None, **defaults, **given})
        fault._check()
        return fault

    def _check(self) -> None:
        if self.service not in SERVICES:
            raise ValueError(f"The service of a fault is one of {', '.join(SERVICES)}.")
        if self.kind not in KINDS:
            raise ValueError(f"The kind of a fault is one of {', '.join(KINDS)}.")
        if not isinstance(self.status, int) or not 200 <= self.status <= 599:
            raise ValueError("The status of a fault is a number from 200 to 599.")
        if not isinstance(self.seconds, int | float) or self.seconds < 0:
            raise ValueError("The seconds of a fault are a number.")
        if not all(isinstance(count, int) and count >= 0 for count in (self.times, self.skip)):
            raise ValueError("The times and the skip of a fault are whole numbers.")
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError("The every of a fault is a whole number from 1 on.")
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(f"The path of a fault is a regular expression: {error}.") from error

    def matches(self, service: str, method: str, path: str) -> bool:
        return (
            self.service == service
            and (self.method is None or self.method.upper() == method)
            and re.search(self.path, path) is not None
        )


class FaultBook:
    """The faults that are still to happen."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._count = 0

    def add(self, fault: Fault) -> str:
        self._count += 1
        fault.id = f"fault_{self._count}"
        self._faults.append(fault)
        return fault.id

    def take(self, service: str, method: str, path: str) -> Fault | None:
        """Return the first fault that this request is to suffer, and count it.

        Every fault before it that is still skipping counts this request as well.
        """
        for fault in self._faults:
            if not fault.matches(service, method, path):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.seen += 1
            if fault.seen % fault.every:
                continue
            self._count_down(fault)
            return fault
        return None

    def _count_down(self, fault: Fault) -> None:
        if fault.times == 1:
            self._faults.remove(fault)
        elif fault.times > 1:
            fault.times -= 1

    def clear(self) -> None:
        self._faults.clear()

    def to_json(self) -> list[JsonObject]:
        return [dict(vars(fault)) for fault in self._faults]
