"""A kind of operation, as data: what is asked of Stripe, and what becomes of the answer. The engine walks all alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from app.database import Batch
from app.models import TrackingState
from app.services import Services
from app.services.operations.operation import HeldOperation
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import Resource


class Made(Protocol):
    """What Stripe answered: its id, and the whole object, of which a fact is made."""

    @property
    def id(self) -> str: ...
    @property
    def stripe_object(self) -> Mapping[str, Any]: ...


M = TypeVar("M", bound=Made)


@dataclass(frozen=True)
class Tracking:
    """Whether runs-service has been told all, and why not."""

    state: TrackingState
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[M]):
    """What the engine has to know of a kind.

    :param name: as it is stored, and as part of the request's hash
    :param resource: what Stripe makes
    :param mark: the key of its metadata that holds the operation's id
    :param defaults: of fields that a caller may leave out: one that is sent is the same request
    :param former_defaults: those that stood in a request's hash until release 1.1, whether they were sent or not
    :param accept: inserts the operation, with what it creates; its rows tell that it was not there before
    :param columns: the values for `accept` besides the operation's own
    :param prepare: what has to be there before Stripe is asked; returns the run that the cost is on
    :param unprepare: ends a run that was made for nothing
    :param params: what Stripe is asked with
    :param event_type: as what kind of event the answer is told
    :param answer: what the caller is answered, as far as it may be kept
    :param id_in_answer: where that holds the id of what Stripe made
    :param secrets: what the caller is answered besides, and only Stripe keeps
    :param complete: what comes after Stripe's answer; the flag says that a former holder may have done a part of it
    """

    name: str
    resource: Resource[M]
    mark: str
    defaults: Mapping[str, Any]
    former_defaults: Mapping[str, Any] = field(default_factory=dict)
    accept: Batch
    columns: Callable[[Mapping[str, Any]], dict[str, Any]]
    prepare: Callable[[HeldOperation, Services, CallContext], str | None]
    unprepare: Callable[[str, Services, CallContext], None]
    params: Callable[[HeldOperation], Mapping[str, Any]]
    event_type: str
    answer: Callable[[HeldOperation, M], dict[str, Any]]
    id_in_answer: str
    secrets: Callable[[M], dict[str, Any]] | None
    complete: Callable[[HeldOperation, Services, CallContext, bool], Tracking]
