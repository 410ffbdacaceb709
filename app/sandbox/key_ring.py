"""The keys that key-service holds for each app."""

import re

from app.sandbox.json_object import JsonObject
from app.sandbox.stripe.account import Accounts

# Stored by the service, one for each endpoint of an app.
EVENTS_OF = "stripe-service-events:"
PROVIDERS = {"stripe": "sk_test_sandbox_", "stripe-webhook": "whsec_sandbox_"}


class KeyRing:
    """Keys by provider and app; an app that was never given one has a made-up one."""

    def __init__(self, accounts: Accounts, stripe_key: str | None) -> None:
        self._accounts = accounts
        self._stripe_key = stripe_key
        self._set: dict[str, dict[str, str | None]] = {provider: {} for provider in PROVIDERS}
        # Which apps have asked for their Stripe key, and so may have an account.
        self._apps: set[str] = set()

    def key(self, provider: str, app_id: str) -> str | None:
        """The app's key; None when it has none."""
        if provider == "stripe":
            self._apps.add(app_id)
        return self._current(provider, app_id)

    def set(self, provider: str, app_id: str, key: str | None) -> None:
        """Give the app another key, or none; another Stripe key opens the app's same account."""
        former = self._current(provider, app_id)
        if provider == "stripe" and former is not None and key is not None:
            self._accounts.roll(former=former, key=key)
        self._set.setdefault(provider, {})[app_id] = key

    def share_account(self, app_id: str, key: str) -> None:
        """Let a key open the account that the app's Stripe key opens."""
        if (own := self.key("stripe", app_id)) is not None:
            self._accounts.of_key(own)
            self._accounts.roll(former=own, key=key)

    def stored(self, app_id: str) -> dict[str, str]:
        """The keys that the app was given, by provider."""
        return {provider: key for provider, keys in self._set.items() if (key := keys.get(app_id)) is not None}

    def event_secrets(self) -> list[str]:
        """The secrets with which apps are told, the newest of each endpoint first."""
        kept = [key for provider, keys in self._set.items() if provider.startswith(EVENTS_OF) for key in keys.values()]
        return [secret for key in kept if key for secret in key.split(",")]

    def apps_of(self, account_id: str) -> list[str]:
        keys = {app_id: self._current("stripe", app_id) for app_id in sorted(self._apps)}
        return [app_id for app_id, key in keys.items() if key and self._accounts.id_of_key(key) == account_id]

    def _current(self, provider: str, app_id: str) -> str | None:
        keys = self._set.get(provider, {})
        if app_id in keys:
            return keys[app_id]
        if provider == "stripe" and self._stripe_key is not None:
            return self._stripe_key
        return PROVIDERS[provider] + _plain(app_id) if provider in PROVIDERS else None

    def clear(self) -> None:
        self._apps.clear()
        for keys in self._set.values():
            keys.clear()

    def to_state(self) -> JsonObject:
        return {"set": self._set, "apps": sorted(self._apps)}

    def load(self, state: JsonObject) -> None:
        self._set |= state["set"]
        self._apps = set(state["apps"])


def _plain(app_id: str) -> str:
    """Write all but letters and digits as `_` and their code, so that no two apps share a key."""
    return re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):x}", app_id)
