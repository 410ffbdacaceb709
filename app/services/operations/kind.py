"""A kind of operation, as data: what is asked of Stripe, and what becomes of the answer. The engine walks all alike."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from app.database import Batch
from app.errors import StripeRefusal
from app.models import TrackingState
from app.services import Services
from app.services.events.stripe_event import Event
from app.services.operations.operation import HeldOperation
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.stripe import Resource

# How far Stripe's clock may be from our database's: to list too much of its objects costs nothing.
STRIPE_CLOCK_SKEW = timedelta(seconds=60)


class Made(Protocol):
    """What Stripe answered: its id, and the whole object, of which a fact is made."""

    @property
    def id(self) -> str: ...
    @property
    def stripe_object(self) -> Mapping[str, Any]: ...


M = TypeVar("M", bound=Made)

NewContext = Callable[[], CallContext]
Ask = Callable[[HeldOperation, Mapping[str, Any], Services, CallContext], M]
Find = Callable[[HeldOperation, Services, NewContext], M | None]


@dataclass(frozen=True)
class Tracking:
    """Whether runs-service has been told all, and why not."""

    state: TrackingState
    error: str | None = None


@dataclass(frozen=True)
class Secrets(Generic[M]):
    """What a caller is answered and only Stripe keeps.

    :param resource: what is asked for it again, when the answer is given again
    :param id_in_answer: where the kept answer holds the id of that
    :param read: gives the fields of the answer
    :param are_in_answer_to: whether a request of this body is answered with any
    """

    resource: Resource[M]
    id_in_answer: str
    read: Callable[[M], dict[str, Any]]
    are_in_answer_to: Callable[[Mapping[str, Any]], bool] = lambda body: True


class Declined(StripeRefusal):
    """Stripe made what was asked for and refused to go on with it: that is taken, and the refusal is the answer to it.

    :param fact: what was made, as an event that tells of the refusal
    :param details: what the caller is told of it, as far as it may be kept
    :param secrets: what the caller is told besides
    """

    def __init__(
        self, refusal: StripeRefusal, *, code: str, fact: Event, details: Mapping[str, Any], secrets: Mapping[str, Any]
    ) -> None:
        super().__init__(refusal.sentence, status=refusal.status, code=code)
        self.fact = fact
        self.kept_details = details
        self.details = {**details, **secrets}


def _as_it_is(body: Mapping[str, Any], services: Services, context: CallContext) -> Mapping[str, Any]:
    return body


def _no_run(operation: HeldOperation, services: Services, context: CallContext) -> None:
    return None


def _no_run_to_end(run_id: str, services: Services, context: CallContext) -> None:
    return None


def _untracked(operation: HeldOperation, services: Services, context: CallContext, may_be_done: bool) -> Tracking:
    return Tracking(TrackingState.NONE)


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[M]):
    """What the engine has to know of a kind.

    :param name: as it is stored, and as part of the request's hash
    :param defaults: of fields that a caller may leave out: one that is sent is the same request
    :param needs_key: whether a request of this body is refused without an Idempotency-Key
    :param former_defaults: those that stood in a request's hash until release 1.1, whether they were sent or not
    :param check: raises what keeps a new request from being accepted and passes with time: a retry isn't asked again
    :param resolve: adds to a new request what it is about at Stripe; raises what keeps it from being accepted
    :param accept: inserts the operation, with what it creates; its rows tell that it was not there before
    :param columns: the values for `accept` besides the operation's own, of its id and its resolved request
    :param prepare: what has to be there before Stripe is asked; returns the run that the cost is on
    :param unprepare: ends a run that was made for nothing
    :param params: what Stripe is asked with
    :param ask: asks Stripe, under the operation's idempotency key; to do so again changes nothing; raises Declined
    :param find: looks for what Stripe has done, where asking again can't tell any more; raises Declined
    :param is_told_by_state: `find` reads the state of an object. A refusal may then mean that it is as it should be
    :param fact: the answer as an event, to be folded beside Stripe's own
    :param answer: what the caller is answered, as far as it may be kept
    :param secrets: what the caller is answered besides
    :param secrets_of_declined: what the caller is told besides in the details of a refusal that was taken
    :param complete: what comes after Stripe's answer; the flag says that a former holder may have done a part of it
    """

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    former_defaults: Mapping[str, Any] = field(default_factory=dict)
    needs_key: Callable[[Mapping[str, Any]], bool] = lambda body: False
    check: Callable[[Mapping[str, Any]], None] = lambda body: None
    resolve: Callable[[Mapping[str, Any], Services, CallContext], Mapping[str, Any]] = _as_it_is
    accept: Batch
    columns: Callable[[uuid.UUID, Mapping[str, Any]], dict[str, Any]]
    prepare: Callable[[HeldOperation, Services, CallContext], str | None] = _no_run
    unprepare: Callable[[str, Services, CallContext], None] = _no_run_to_end
    params: Callable[[HeldOperation], Mapping[str, Any]]
    ask: Ask[M]
    find: Find[M]
    is_told_by_state: bool = False
    fact: Callable[[HeldOperation, M], Event]
    answer: Callable[[HeldOperation, M], dict[str, Any]]
    secrets: Secrets[M] | None = None
    secrets_of_declined: Secrets[M] | None = None
    complete: Callable[[HeldOperation, Services, CallContext, bool], Tracking] = _untracked


def create_at(resource: Resource[M]) -> Ask[M]:
    """Have Stripe make an object."""

    def ask(operation: HeldOperation, params: Mapping[str, Any], services: Services, context: CallContext) -> M:
        return services.stripe.create(
            resource, operation.app_id, params, idempotency_key=operation.upstream_key, context=context
        )

    return ask


def find_made(
    resource: Resource[M], *, mark: str, among: Callable[[HeldOperation], Mapping[str, Any]] = lambda _: {}
) -> Find[M]:
    """List what Stripe made since the operation was asked for first, and match our metadata.

    :param mark: the key of its metadata that holds the operation's id
    :param among: filters of the list besides the time
    """

    def find(operation: HeldOperation, services: Services, new_context: NewContext) -> M | None:
        since = (operation.asked_at or datetime.now(UTC)) - STRIPE_CLOCK_SKEW
        filters = {"created": {"gte": int(since.timestamp())}, **among(operation)}
        metadata = (mark, str(operation.id))
        return services.stripe.find(resource, operation.app_id, metadata, filters, new_context=new_context)

    return find
