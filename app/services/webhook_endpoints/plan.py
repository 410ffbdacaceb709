"""What an account's webhook endpoints are, what they should be, and what that takes: pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

# An endpoint is replaced by a new one; both are told events for so long.
OVERLAP_SECONDS = 24 * 3600

PATH = "/webhooks/stripe/"
# By this an endpoint is known as made by the service, by the digest which of an app's secrets is its own, and by the
# last that this secret was seen where webhooks are verified with it.
METADATA = {"service": "stripe-service"}
DIGEST = "secretDigest"
IN_PLACE = {"secretInPlace": "yes"}


@dataclass(frozen=True)
class Endpoint:
    """A webhook endpoint of an account; only the answer to its creation holds the secret.

    https://docs.stripe.com/api/webhook_endpoints/object

    :param created: in seconds since 1970
    """

    id: str
    url: str
    event_types: frozenset[str]
    api_version: str | None
    is_enabled: bool
    created: int
    metadata: Mapping[str, Any]
    secret: str | None = field(default=None, repr=False)

    @property
    def digest(self) -> str | None:
        """That of its secret, which the making of it has noted."""
        return self.metadata.get(DIGEST)

    @property
    def was_in_place(self) -> bool:
        """Whether its secret once was where webhooks are verified with it."""
        return IN_PLACE.items() <= self.metadata.items()


@dataclass(frozen=True)
class Wanted:
    """What an account's endpoint should be.

    :param app_id: the app that leads the account
    """

    public_url: str
    app_id: str
    event_types: frozenset[str]
    api_version: str

    @property
    def path(self) -> str:
        return PATH + self.app_id

    @property
    def url(self) -> str:
        return self.public_url + self.path

    def has_made(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint is of this deployment: another may have its own in the same account."""
        is_marked = METADATA.items() <= endpoint.metadata.items()
        return is_marked and endpoint.url.startswith(self.public_url + PATH)


@dataclass(frozen=True)
class Plan:
    """What an account's endpoints are, beside what they should be.

    :param endpoints: all of the account
    :param secrets: that key-service has for the app that leads it
    :param has_moved: whether some of these may be of another account, which the app's key opened before
    :param now: in seconds since 1970
    """

    wanted: Wanted
    endpoints: Sequence[Endpoint]
    secrets: Sequence[str] = field(repr=False)
    has_moved: bool
    now: float

    @cached_property
    def own(self) -> list[Endpoint]:
        """Those that the service has made, the newest first."""
        return sorted(filter(self.wanted.has_made, self.endpoints), key=lambda each: each.created, reverse=True)

    @cached_property
    def current(self) -> Endpoint | None:
        """The one by which the account's events come now: the newest whose secret key-service has."""
        return next((each for each in self.own if each.url == self.wanted.url and self._has_secret_of(each)), None)

    @property
    def is_disabled(self) -> bool:
        """Whether somebody has disabled it, and so doesn't want what comes of a change either."""
        return self.current is not None and not self.current.is_enabled

    @property
    def is_made_anew(self) -> bool:
        """Whether a new one is needed: a version can't be changed."""
        return self.current is None or self.current.api_version != self.wanted.api_version

    @property
    def asks_for_other_types(self) -> bool:
        return self.current is not None and self.current.event_types != self.wanted.event_types

    @property
    def unfinished(self) -> list[Endpoint]:
        """Those whose secret nobody ever had: their making was broken off."""
        return [each for each in self.own if not (each.was_in_place or self._has_secret_of(each))]

    @property
    def outdated(self) -> list[Endpoint]:
        """Those that the current one has replaced for long enough."""
        if self.current is None or self.is_made_anew or self.now < self.current.created + OVERLAP_SECONDS:
            return []
        return [each for each in self.own if each not in (self.current, *self.unfinished)]

    @property
    def others(self) -> list[Endpoint]:
        """Those of others that lead to the app's path, such as one made by hand."""
        return [
            each
            for each in self.endpoints
            if not self.wanted.has_made(each) and urlsplit(each.url).path.endswith(self.wanted.path)
        ]

    @property
    def kept_secrets(self) -> list[str]:
        """The secrets without those of outdated endpoints, and without any that may be of another account.

        What else is there a person has put: for an endpoint made by hand, or when Stripe was asked to roll a secret.
        """
        own, outdated = ({each.digest for each in endpoints} for endpoints in (self.own, self.outdated))
        digests = {secret: digest_of(secret) for secret in self.secrets}
        return [
            secret
            for secret, digest in digests.items()
            if digest not in outdated and (digest in own or not self.has_moved)
        ]

    def differences(self) -> list[str]:
        """What is not as it should be, each in a few words."""
        if self.is_disabled:
            return ["somebody has disabled it"]
        found = [f"{each.id} was left by a run that broke off" for each in self.unfinished]
        if self.current is None:
            found.append("there is none")
        elif self.is_made_anew:
            found.append(f"its version is {self.current.api_version}, not {self.wanted.api_version}")
        elif self.asks_for_other_types:
            missing = len(self.wanted.event_types - self.current.event_types)
            needless = len(self.current.event_types - self.wanted.event_types)
            found.append(f"it lacks {missing} types of events, and has {needless} too many")
        return found + [f"{each.id} was replaced, and goes" for each in self.outdated]

    def _has_secret_of(self, endpoint: Endpoint) -> bool:
        return any(endpoint.digest == digest_of(secret) for secret in self.secrets)


def digest_of(secret: str) -> str:
    """By which a secret is known again where it isn't kept."""
    return hashlib.sha256(secret.encode()).hexdigest()
