"""Making and mending the webhook endpoint of each Stripe account.

Only the answer to an endpoint's creation holds its secret. So an endpoint is made, and marked with the secret's digest;
the secret is stored in key-service before those that are there, and read back; and the endpoint is marked as one whose
secret is in place. Where a run breaks off, the next one goes on with an endpoint whose secret key-service has, and
deletes one whose secret nobody ever had. An endpoint that was replaced goes a day later.
"""

import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from app.errors import NoStripeKey, ServiceError, StripeRefusal, UpstreamError
from app.services import Services
from app.services.events.stripe_object import cents_of, id_of, optional, required, text_of
from app.services.operations.operation import reason_of
from app.services.operations.recovery import command_context
from app.services.reconciliation.reconcile import EVENT_TYPES
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.keys import UPSTREAM as KEY_SERVICE
from app.services.upstreams.keys import Provider
from app.services.upstreams.stripe import API_VERSION, Resource
from app.services.upstreams.stripe import UPSTREAM as STRIPE
from app.services.webhook_endpoints.accounts import (
    SharedAccount,
    apps_to_check,
    known_apps,
    look_up,
    save,
    shared_accounts,
)
from app.services.webhook_endpoints.lease import AccountTaken, HeldAccount
from app.services.webhook_endpoints.plan import DIGEST, IN_PLACE, METADATA, Endpoint, Plan, Wanted, digest_of

NewContext = Callable[[], CallContext]


def _read_endpoint(shown: Mapping[str, Any]) -> Endpoint:
    return Endpoint(
        id=required(id_of(shown["id"])),
        url=required(text_of(shown["url"])),
        event_types=frozenset(shown["enabled_events"]),
        api_version=optional(text_of, shown.get("api_version")),
        is_enabled=shown["status"] == "enabled",
        created=required(cents_of(shown["created"])),
        metadata=dict(shown["metadata"]),
        secret=optional(text_of, shown.get("secret")),
    )


ENDPOINTS = Resource[Endpoint]("/v1/webhook_endpoints", "webhook_endpoint", _read_endpoint)


@dataclass(frozen=True)
class Looked:
    """What a look at an account, or at an app whose account can't be known, came to.

    :param done: what was done, each in a few words
    :param error: why it could not be brought to its end
    """

    apps: tuple[str, ...]
    account_id: str | None = None
    plan: Plan | None = None
    done: tuple[str, ...] = ()
    error: str | None = None


def show_endpoints(services: Services, *, command: str, app_id: str | None = None) -> Iterator[Looked]:
    """What is there for each account and what differs; nothing is changed.

    :param app_id: look at the account of this app alone
    """
    known = known_apps(services)
    app_ids = [app_id] if app_id else apps_to_check(services, known=known)
    seen = yield from _see(app_ids, services, command)
    for account in shared_accounts(known, seen):
        yield _tried(account, partial(_show, account, services, command))


def sync_endpoints(
    services: Services, *, command: str, app_id: str | None = None, only_due: bool = False
) -> Iterator[Looked]:
    """Make or mend the endpoint of each account, and note which apps share it; one that fails stops no other.

    :param app_id: do so for the account of this app alone
    :param only_due: for the apps that were not looked at for a day
    """
    known = known_apps(services)
    app_ids = [app_id] if app_id else apps_to_check(services, known=known, only_due=only_due)
    seen = yield from _see(app_ids, services, command)
    for each, account_id in seen.items():
        save(each, account_id, services=services)
    for account in shared_accounts(known, seen):
        yield _tried(account, partial(_sync, account, services, command))


def _see(app_ids: Sequence[str], services: Services, command: str) -> Generator[Looked, None, dict[str, str]]:
    """The account that each app's key opens; yield each app of which that can't be known."""
    seen: dict[str, str] = {}
    for app_id in app_ids:
        try:
            seen[app_id] = look_up(app_id, services=services, context=command_context(command, services))
        except ServiceError as error:
            yield Looked((app_id,), error=_explain(error))
    return seen


def _tried(account: SharedAccount, work: Callable[[], Looked]) -> Looked:
    """What work on an account came to, also where it failed."""
    try:
        return work()
    except AccountTaken as taken:
        return Looked(account.app_ids, account.id, done=(taken.sentence,))
    except ServiceError as error:
        return Looked(account.app_ids, account.id, error=_explain(error))


def _show(account: SharedAccount, services: Services, command: str) -> Looked:
    plan = _look(account, services, partial(command_context, command, services))
    return Looked(account.app_ids, account.id, plan)


def _sync(account: SharedAccount, services: Services, command: str) -> Looked:
    held = HeldAccount.claim(account.id, command=command, services=services)
    try:
        chosen = replace(account, lead=lead, has_moved=False) if (lead := held.lead()) else account
        mending = _Mending(account.asking, _look(chosen, services, held.context), services, held.context)
        error = mending.mend()
        if mending.has_endpoint:
            held.elect(chosen.lead)
        held.note_check(account.app_ids)
        return Looked(account.app_ids, account.id, mending.plan, tuple(mending.done), error)
    finally:
        held.release()


def _look(account: SharedAccount, services: Services, new_context: NewContext) -> Plan:
    wanted = Wanted(services.settings.require_public_url(), account.lead, frozenset(EVENT_TYPES), API_VERSION)
    endpoints = list(services.stripe.list(ENDPOINTS, account.asking, {}, new_context=new_context))
    secrets = _secrets_of(account.lead, services, new_context())
    return Plan(wanted, endpoints, secrets, account.has_moved, time.time())


def _secrets_of(app_id: str, services: Services, context: CallContext) -> list[str]:
    """The app's secrets, none where it has none: key-service holds several by commas."""
    try:
        told = services.keys.ask(Provider.STRIPE_WEBHOOK, app_id, context)
    except NoStripeKey:
        return []
    return [secret for part in told.split(",") if (secret := part.strip())]


class _Mending:
    """Makes an account's endpoints what they should be, step by step; each step may be the last.

    :param app_id: the app with whose key Stripe is asked
    """

    def __init__(self, app_id: str, plan: Plan, services: Services, new_context: NewContext) -> None:
        self._app_id = app_id
        self.plan = plan
        self._services = services
        self._new_context = new_context
        self._is_made = False
        self.done: list[str] = []

    @property
    def has_endpoint(self) -> bool:
        """Whether the account has one whose secret is in place."""
        return self._is_made or self.plan.current is not None

    def mend(self) -> str | None:
        """Do what the plan says; return what stands in the way and is for a person to decide."""
        plan = self.plan
        if plan.is_disabled:
            return "somebody has disabled it at Stripe: enable it there, or delete it"
        for left in plan.unfinished:
            self._delete(left, "left by a run that broke off")
        if plan.current is not None:
            self._mend_current(plan.current)
        if plan.is_made_anew:
            try:
                self._make()
            except StripeRefusal as refusal:
                there = ", ".join(f"{each.id} {each.url}" for each in plan.endpoints if each not in plan.unfinished)
                return f"{refusal.sentence} There are: {there}"
        return None

    def _mend_current(self, current: Endpoint) -> None:
        """Bring what is there to what it should be; whoever replaces it takes it so."""
        if not current.was_in_place:
            self._update(current, {"metadata": IN_PLACE})
        if self.plan.asks_for_other_types:
            self._update(current, {"enabled_events": sorted(self.plan.wanted.event_types)})
            self.done.append(f"changed the types of {current.id}")
        # The secrets first, so that none is left of what is gone: what that tells in between, this one tells as well.
        if self.plan.kept_secrets != list(self.plan.secrets):
            self._store(self.plan.kept_secrets)
        for outdated in self.plan.outdated:
            self._delete(outdated, "replaced a day ago")

    def _make(self) -> None:
        wanted = self.plan.wanted
        params = {
            "url": wanted.url,
            "enabled_events": sorted(wanted.event_types),
            "api_version": wanted.api_version,
            "metadata": METADATA,
            "connect": False,
        }
        made = self._services.stripe.create(
            ENDPOINTS, self._app_id, params, idempotency_key=str(uuid.uuid4()), context=self._new_context()
        )
        if made.secret is None:
            raise UpstreamError(STRIPE, reason="made an endpoint without a secret")
        self._update(made, {"metadata": {DIGEST: digest_of(made.secret)}})
        self._store([made.secret, *self.plan.kept_secrets])
        if made.secret not in _secrets_of(wanted.app_id, self._services, self._new_context()):
            raise UpstreamError(KEY_SERVICE, reason="doesn't give back the secret that it was given")
        self._update(made, {"metadata": IN_PLACE})
        self._is_made = True
        self.done.append(f"made {made.id}")

    def _store(self, secrets: Sequence[str]) -> None:
        context = self._new_context()
        self._services.keys.store(Provider.STRIPE_WEBHOOK, self.plan.wanted.app_id, ",".join(secrets), context)

    def _update(self, endpoint: Endpoint, params: Mapping[str, Any]) -> None:
        self._services.stripe.update(ENDPOINTS, self._app_id, endpoint.id, params, self._new_context())

    def _delete(self, endpoint: Endpoint, why: str) -> None:
        self._services.stripe.delete(ENDPOINTS, self._app_id, endpoint.id, self._new_context())
        self.done.append(f"deleted {endpoint.id}, {why}")


def _explain(error: ServiceError) -> str:
    return reason_of(error) or error.sentence
