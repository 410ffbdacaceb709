"""Idempotency keys: https://docs.stripe.com/api/idempotent_requests.

The first executed answer is given again for 24 hours, 402 and 5xx included. What was refused before execution is not
kept, the same key with other parameters is an error, and so is a key whose first request is still being answered.
"""

from dataclasses import asdict, dataclass

from werkzeug.wrappers import Request, Response

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.errors import StripeError, invalid

KEPT_SECONDS = 24 * 3600
MAX_KEY_LENGTH = 255
# Where the gateway leaves the 5xx that a fault puts in the place of an executed request's true answer.
ANSWER_INSTEAD = "sandbox.answer_instead"


@dataclass
class KeptAnswer:
    """An executed request, and what was answered to it."""

    method: str
    path: str
    parameters: list[list[str]]
    status: int
    body: str
    request_id: str
    object_id: str | None
    at: int


class KeptAnswers:
    """One account's idempotency keys."""

    def __init__(self) -> None:
        self._by_key: dict[str, KeptAnswer] = {}

    def replay(self, key: str, incoming: Request, *, now: int) -> KeptAnswer | None:
        """Return the kept answer to the same request.

        :raises StripeError: when the key was used with another request
        """
        if len(key) > MAX_KEY_LENGTH:
            raise invalid(f"Idempotency keys can be up to {MAX_KEY_LENGTH} characters long.")
        kept = self._by_key.get(key)
        if kept is None or now - kept.at >= KEPT_SECONDS:
            return None
        if (kept.method, kept.path) != (incoming.method, incoming.path):
            raise _mismatch("for the same endpoint they were first used for", key)
        if kept.parameters != parameters_of(incoming):
            raise _mismatch("with the same parameters they were first used with", key)
        return kept

    def keep(self, key: str, answer: KeptAnswer) -> None:
        self._by_key[key] = answer

    def to_state(self) -> JsonObject:
        return {key: asdict(answer) for key, answer in self._by_key.items()}

    def load(self, state: JsonObject) -> None:
        self._by_key = {key: KeptAnswer(**answer) for key, answer in state.items()}


class KeysInUse:
    """The keys whose request a fault is delaying."""

    def __init__(self) -> None:
        self._identities: list[tuple[str, str]] = []

    def add(self, incoming: Request) -> None:
        self._identities.append(_identity(incoming))

    def remove(self, incoming: Request) -> None:
        self._identities.remove(_identity(incoming))

    def check(self, incoming: Request) -> None:
        """:raises StripeError: when another request with this key is still being answered"""
        authorization, key = _identity(incoming)
        if key and (authorization, key) in self._identities:
            raise StripeError(
                409,
                "idempotency_error",
                "There is currently another in-progress request using this Idempotent Key (that probably means you "
                f"submitted twice, and the other request is still going through): {key}. Please try again later.",
                code="idempotency_key_in_use",
            )


def parameters_of(incoming: Request) -> list[list[str]]:
    return sorted([name, value] for name, value in incoming.form.items(multi=True))


def answer_to_keep(incoming: Request, response: Response) -> Response:
    instead: Response | None = incoming.environ.get(ANSWER_INSTEAD)
    return response if instead is None else instead


def _identity(incoming: Request) -> tuple[str, str]:
    return incoming.headers.get("Authorization", ""), incoming.headers.get("Idempotency-Key", "")


def _mismatch(how: str, key: str) -> StripeError:
    return StripeError(
        400,
        "idempotency_error",
        f"Keys for idempotent requests can only be used {how}. "
        f"Try using a key other than '{key}' if you meant to execute a different request.",
    )
