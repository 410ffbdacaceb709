"""The clients of the upstreams and the use cases."""

from dataclasses import dataclass

from sqlalchemy import Engine

from app.config import Settings
from app.database import BOUNDED, TRANSACTIONAL
from app.services.app_secrets import AppSecrets
from app.services.key_client import KeyClient
from app.services.runs_client import RunsClient
from app.services.slots import Slots
from app.services.stripe_client import Stripe


@dataclass(frozen=True)
class Services:
    """What a use case works with: on `database` every statement commits by itself, on `transactions` one begins first.

    Both draw on one pool of connections.
    """

    settings: Settings
    database: Engine
    transactions: Engine
    keys: KeyClient
    runs: RunsClient
    stripe: Stripe
    app_secrets: AppSecrets
    slots: Slots

    @classmethod
    def connect(cls, settings: Settings, database: Engine) -> "Services":
        """Build the clients from the settings; nothing is sent yet."""
        keys = KeyClient(
            url=settings.key_service_url,
            api_key=settings.key_service_api_key,
            timeout_seconds=settings.upstream_timeout_seconds,
            cache_seconds=settings.key_cache_seconds,
        )
        runs = RunsClient(
            url=settings.runs_service_url,
            api_key=settings.runs_service_api_key,
            timeout_seconds=settings.upstream_timeout_seconds,
        )
        stripe = Stripe(api_base=settings.stripe_api_base, timeout_seconds=settings.stripe_timeout_seconds, keys=keys)
        bounded = database.execution_options(**{BOUNDED: True})
        transactions = bounded.execution_options(**{TRANSACTIONAL: True})
        return cls(settings, bounded, transactions, keys, runs, stripe, AppSecrets(keys), Slots(settings.web_threads))
