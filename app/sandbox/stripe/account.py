"""Stripe accounts: whose objects, events and idempotency keys are whose."""

import hashlib
import secrets
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import stripe

from app.sandbox.clock import Clock
from app.sandbox.json_object import JsonObject, snapshot
from app.sandbox.stripe import errors, old_shapes
from app.sandbox.stripe.fixtures import fresh
from app.sandbox.stripe.idempotency import KeptAnswers

ID_PREFIXES = {
    "payment_intent": "pi_",
    "charge": "ch_",
    "refund": "re_",
    "dispute": "du_",
    "checkout.session": "cs_test_",
    "product": "prod_",
    "price": "price_",
    "coupon": "",
    "promotion_code": "promo_",
    "customer": "cus_",
    "subscription": "sub_",
    "subscription_item": "si_",
    "discount": "di_",
    "invoice": "in_",
    "invoice_payment": "inpay_",
    "item": "li_",
    "line_item": "il_",
    "webhook_endpoint": "we_",
    "invoiceitem": "ii_",
    "payment_method": "pm_",
    "setup_intent": "seti_",
    "billing_portal.session": "bps_",
    "event": "evt_",
}
ID_LENGTHS = {"checkout.session": 58, "coupon": 8}
ID_LETTERS = string.ascii_letters + string.digits
ANY_HOST = "http://127.0.0.1"
REFUND_STATUSES = ("succeeded", "pending", "requires_action")

Publish = Callable[["Account", JsonObject], None]
React = Callable[["Account", str, JsonObject], None]


def random_id(prefix: str, length: int = 24) -> str:
    return prefix + "".join(secrets.choice(ID_LETTERS) for _ in range(length))


@dataclass(frozen=True)
class Caller:
    """Who makes the account's objects change: a request of Stripe's API, or, with no id, somebody in the sandbox."""

    request_id: str | None = None
    idempotency_key: str | None = None
    base_url: str = ANY_HOST


class Account:
    """One Stripe account, in test mode.

    :param publish: takes each event, to be delivered
    :param react: is told of each event, for what follows from it in the account itself
    """

    def __init__(self, identifier: str, *, clock: Clock, publish: Publish, react: React) -> None:
        self.id = identifier
        self.clock = clock
        self.publish = publish
        self.react = react
        self.caller = Caller()
        self.objects: dict[str, dict[str, JsonObject]] = {resource: {} for resource in ID_PREFIXES}
        # What a checkout session was created with and doesn't show, by its id.
        self.checkouts: dict[str, JsonObject] = {}
        # The signing secrets of its webhook endpoints, by their ids: no object shows them.
        self.endpoint_secrets: dict[str, str] = {}
        # What a payment with a payment method leads to, and whether it can still be used, by its id.
        self.methods: dict[str, JsonObject] = {}
        # What a subscription doesn't show, by its id: whether its card declines, and what its next invoice is to add.
        self.billing: dict[str, JsonObject] = {}
        self.kept_answers = KeptAnswers()
        # What refunds can be paid from, in the smallest unit of any currency; None is enough for all.
        self.available: int | None = None
        # What a refund through the API is at first: one of `REFUND_STATUSES`.
        self.refund_status = "succeeded"
        # Whether its events show objects as API versions before 2025-03-31 did.
        self.tells_old_shapes = False

    def new(self, resource: str, **fields: Any) -> JsonObject:
        """Create an object and keep it."""
        made = self.build(resource, **fields)
        self.keep(made)
        return made

    def keep(self, made: JsonObject) -> None:
        self.objects[made["object"]][made["id"]] = made

    def build(self, resource: str, **fields: Any) -> JsonObject:
        """Make an object with an id and a time of its own, to be a part of another one."""
        made = fresh(resource)
        made["id"] = self._new_id(resource)
        for name in {"created", "updated"} & set(made):
            made[name] = self.clock.now()
        if "metadata" in fields:
            fields["metadata"] = {key: value for key, value in (fields["metadata"] or {}).items() if value != ""}
        return made | fields

    def _new_id(self, resource: str) -> str:
        return random_id(ID_PREFIXES[resource], ID_LENGTHS.get(resource, 24))

    def emit(self, event_type: str, changed: JsonObject, *, previous: JsonObject | None = None) -> None:
        """Record that something happened to the object, with the object as it is now.

        :param previous: what its changed fields were before
        """
        data = {"object": snapshot(changed)} | ({} if previous is None else {"previous_attributes": snapshot(previous)})
        event = self.new(
            "event",
            api_version=old_shapes.VERSION if self.tells_old_shapes else stripe.api_version,
            data=old_shapes.data_of(self, data) if self.tells_old_shapes else data,
            request={"id": self.caller.request_id, "idempotency_key": self.caller.idempotency_key},
            type=event_type,
        )
        self.publish(self, event)
        self.react(self, event_type, changed)

    def get(self, resource: str, identifier: str) -> JsonObject | None:
        return self.objects[resource].get(identifier)

    def named(self, resource: str, identifier: str, *, param: str) -> JsonObject:
        """Return the object that a parameter names.

        :raises StripeError: a 400, when there is none, or no longer
        """
        found = self.get(resource, identifier)
        if found is None or "deleted" in found:
            raise errors.no_such(resource, identifier, param=param, status=400)
        return found

    def anything(self, identifier: str) -> JsonObject | None:
        """Return the object of that id, whatever it is."""
        return next((kept[identifier] for kept in self.objects.values() if identifier in kept), None)

    def newest_first(self, resource: str) -> list[JsonObject]:
        return list(reversed(self.objects[resource].values()))

    def where(self, resource: str, **fields: Any) -> Iterator[JsonObject]:
        """The objects that have these values in these fields, newest first."""
        for candidate in reversed(self.objects[resource].values()):
            if all(candidate[name] == value for name, value in fields.items()):
                yield candidate

    def to_state(self) -> JsonObject:
        return {
            "objects": self.objects,
            "checkouts": self.checkouts,
            "endpointSecrets": self.endpoint_secrets,
            "methods": self.methods,
            "keptAnswers": self.kept_answers.to_state(),
            "available": self.available,
            "refundStatus": self.refund_status,
            "billing": self.billing,
            "oldShapes": self.tells_old_shapes,
        }

    def load(self, state: JsonObject) -> None:
        self.objects |= state["objects"]
        self.checkouts = state["checkouts"]
        self.endpoint_secrets = state.get("endpointSecrets", {})
        self.methods = state.get("methods", {})
        self.kept_answers.load(state["keptAnswers"])
        self.available = state.get("available")
        self.refund_status = state.get("refundStatus", "succeeded")
        self.billing = state.get("billing", {})
        self.tells_old_shapes = state.get("oldShapes", False)


class Accounts:
    """All accounts, and the keys that open them."""

    def __init__(self, clock: Clock, publish: Publish, react: React) -> None:
        self._clock = clock
        self._publish = publish
        self._react = react
        self.by_id: dict[str, Account] = {}
        self._id_by_key: dict[str, str] = {}
        self._revoked: set[str] = set()

    def of_key(self, key: str) -> Account:
        """Return the account of the key, which is opened when the key is new.

        :raises StripeError: when it is no Stripe key or a live one, or was revoked
        """
        if not key.startswith(("sk_", "rk_")) or key.startswith(errors.LIVE_KEYS) or key in self._revoked:
            raise errors.unauthorized(key)
        identifier = self._id_by_key.get(key)
        if identifier is None:
            identifier = self._id_by_key[key] = "acct_" + hashlib.sha256(key.encode()).hexdigest()[:16]
        if identifier not in self.by_id:
            _stock(self._open(identifier))
        return self.by_id[identifier]

    def _open(self, identifier: str) -> Account:
        account = Account(identifier, clock=self._clock, publish=self._publish, react=self._react)
        self.by_id[identifier] = account
        return account

    def id_of_key(self, key: str) -> str | None:
        return self._id_by_key.get(key)

    def revoke(self, key: str) -> None:
        self._revoked.add(key)

    def roll(self, *, former: str, key: str) -> None:
        """Let a new key open the account of the former one, unless it opens another already."""
        identifier = self._id_by_key.get(former)
        if identifier is not None:
            self._id_by_key.setdefault(key, identifier)

    def find(self, resource: str, identifier: str) -> tuple[Account, JsonObject] | None:
        for account in self.by_id.values():
            found = account.get(resource, identifier)
            if found is not None:
                return account, found
        return None

    def clear(self) -> None:
        self.by_id.clear()
        self._id_by_key.clear()
        self._revoked.clear()

    def to_state(self) -> JsonObject:
        return {
            "accounts": {identifier: account.to_state() for identifier, account in self.by_id.items()},
            "keys": self._id_by_key,
            "revoked": sorted(self._revoked),
        }

    def load(self, state: JsonObject) -> None:
        self._id_by_key = state["keys"]
        self._revoked = set(state["revoked"])
        for identifier, kept in state["accounts"].items():
            self._open(identifier).load(kept)


def _stock(account: Account) -> None:
    """Put in what every account has from the start, so that a line pasted from the README works."""
    account.new("product", id="prod_sandbox", name="Sandbox T-shirt", default_price="price_sandbox")
    money = {"product": "prod_sandbox", "currency": "usd", "unit_amount": 2000, "unit_amount_decimal": "2000"}
    account.new("price", id="price_sandbox", **money)
    monthly = {
        "interval": "month",
        "interval_count": 1,
        "meter": None,
        "trial_period_days": None,
        "usage_type": "licensed",
    }
    account.new("price", id="price_sandbox_monthly", type="recurring", recurring=monthly, **money)
