"""A caller's Idempotency-Key where Stripe is the one to remember it, for a day: what it makes then moves no money."""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import IdempotencyKeyInUse, IdempotencyKeyReused
from app.services.upstreams.stripe import IdempotencyKeyExecuting, IdempotencyMismatch


def stripe_key(made: str, app_id: str, idempotency_key: str | None) -> str:
    """The idempotency key for Stripe: the caller's, scoped to what is made and to the app, or a fresh one.

    Several apps may have one Stripe account. None of the parts can hold a line end, so that no two scopes meet; the
    hash keeps within the 255 characters that Stripe takes. https://docs.stripe.com/api/idempotent_requests
    """
    if idempotency_key is None:
        return str(uuid.uuid4())
    scoped = "\n".join((made, app_id, idempotency_key))
    return f"catalog-{hashlib.sha256(scoped.encode()).hexdigest()}"


@contextmanager
def answering_for_the_callers_key() -> Iterator[None]:
    """Tell in the caller's terms what Stripe says of the idempotency key, which was made from the caller's.

    :raises IdempotencyKeyReused, IdempotencyKeyInUse: when another request has, or had, the caller's key.
    """
    try:
        yield
    except IdempotencyMismatch:
        raise IdempotencyKeyReused from None
    except IdempotencyKeyExecuting:
        raise IdempotencyKeyInUse from None
