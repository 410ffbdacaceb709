"""The clients of the upstreams and the use cases."""

from dataclasses import dataclass, field

from sqlalchemy import Engine

from app.config import Settings
from app.database import POOL_WAIT_SECONDS, Database, Queue
from app.services.access.callers import Callers
from app.services.concurrency import FairLimit
from app.services.stopping import Stop
from app.services.upstreams import limits
from app.services.upstreams.event_endpoints import EventEndpoints
from app.services.upstreams.keys import KeyClient
from app.services.upstreams.runs import RunsClient
from app.services.upstreams.signing_secrets import SigningSecrets
from app.services.upstreams.stripe import Stripe


@dataclass(frozen=True)
class Services:
    """What a use case works with."""

    settings: Settings
    database: Database
    keys: KeyClient
    signing_secrets: SigningSecrets
    runs: RunsClient
    stripe: Stripe
    event_endpoints: EventEndpoints
    callers: Callers
    upstream_limit: FairLimit
    statistics_limit: limits.ConcurrencyLimit
    stop: Stop = field(default_factory=Stop)

    @classmethod
    def connect(cls, settings: Settings, engine: Engine) -> "Services":
        """Build the clients from the settings; nothing is sent yet."""
        keys = KeyClient(
            url=settings.key_service_url,
            api_key=settings.key_service_api_key,
            timeout_seconds=settings.upstream_timeout_seconds,
            cache_seconds=settings.key_cache_seconds,
        )
        signing_secrets = SigningSecrets(keys, cache_seconds=settings.key_cache_seconds, threads=settings.web_threads)
        runs = RunsClient(
            url=settings.runs_service_url,
            api_key=settings.runs_service_api_key,
            timeout_seconds=settings.upstream_timeout_seconds,
        )
        stripe = Stripe(api_base=settings.stripe_api_base, timeout_seconds=settings.stripe_timeout_seconds, keys=keys)
        event_endpoints = EventEndpoints(allow_private=settings.allow_private_endpoints)
        limit = FairLimit(settings.web_threads)
        # Those of a large app take as long as a statement may: half of the connections are left to everything else.
        statistics_limit = limits.ConcurrencyLimit(
            settings.db_pool_size // 2, waiting=settings.web_threads * 5 // 8, wait_seconds=POOL_WAIT_SECONDS
        )
        database = Database(engine, Queue(settings.db_pool_size))
        callers = Callers(database)
        return cls(
            settings,
            database,
            keys,
            signing_secrets,
            runs,
            stripe,
            event_endpoints,
            callers,
            limit,
            statistics_limit,
        )
