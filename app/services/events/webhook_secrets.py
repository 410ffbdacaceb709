"""The webhook secrets of apps: remembered for a short time, and asked afresh when a signature doesn't fit."""

import re
import threading

from cachetools import TTLCache

from app.errors import NoStripeKey
from app.services.upstreams.call_context import CallContext
from app.services.upstreams.keys import KeyClient, Provider

# A forger can make us ask key-service for an app's secret this often, and no oftener.
REFRESH_SECONDS = 5
MAX_REFRESHED_APPS = 10_000

APP_ID = re.compile(r"[A-Za-z0-9._:-]{1,200}")


class AppSecrets:
    """Asks key-service for webhook secrets, so that one can be rotated without a restart."""

    def __init__(self, keys: KeyClient) -> None:
        self._keys = keys
        self._lock = threading.Lock()
        self._refreshed: TTLCache[str, bool] = TTLCache(MAX_REFRESHED_APPS, REFRESH_SECONDS)

    def current(self, app_id: str, context: CallContext) -> tuple[str, ...]:
        """The app's secrets; none when key-service has none, or when this can't be an app.

        :raises UpstreamError: when key-service can't tell.
        """
        kept = self._kept(app_id, context) if APP_ID.fullmatch(app_id) else ""
        return tuple(secret.strip() for secret in kept.split(",") if secret.strip())

    def refreshed(self, app_id: str, context: CallContext) -> tuple[str, ...]:
        """The secrets that key-service has now, when it wasn't asked for them just before.

        :raises UpstreamError: when key-service can't tell.
        """
        with self._lock:
            if app_id in self._refreshed:
                return ()
            self._refreshed[app_id] = True
        self._keys.forget(Provider.STRIPE_WEBHOOK, app_id)
        return self.current(app_id, context)

    def _kept(self, app_id: str, context: CallContext) -> str:
        """What key-service keeps for the app: several secrets, by commas, while one is rotated."""
        try:
            return self._keys.get(Provider.STRIPE_WEBHOOK, app_id, context)
        except NoStripeKey:
            return ""
