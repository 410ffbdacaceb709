"""A payment's id, as callers send it."""

import uuid

from app.errors import NotFound


def read_payment_id(text: str) -> uuid.UUID:
    """The id that a text is, in whatever way of writing a UUID.

    :raises NotFound: when it is none: there is no such payment.
    """
    try:
        return uuid.UUID(text)
    except ValueError:
        raise NotFound("Payment not found") from None
