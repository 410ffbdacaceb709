"""The tables. Constraints and indexes live here: what must never happen, the database refuses."""

import uuid
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Identity,
    Index,
    Integer,
    SmallInteger,
    String,
    Text,
    Uuid,
    func,
    or_,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSON, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.extensions import db


class Base(DeclarativeBase):
    """The base of all models."""

    metadata = db.metadata
    type_annotation_map = {  # noqa: RUF012 -- SQLAlchemy's own convention
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB,
        uuid.UUID: Uuid,
    }


class PaymentKind(StrEnum):
    """What Stripe is asked to make for a payment; a renewal begins with an invoice that Stripe makes by itself."""

    CHECKOUT_SESSION = "checkout_session"
    PAYMENT_INTENT = "payment_intent"
    RENEWAL = "renewal"


class OperationKind(StrEnum):
    """What Stripe is asked to do: to make a payment's object, or to do something with it."""

    CHECKOUT_SESSION = "checkout_session"
    PAYMENT_INTENT = "payment_intent"
    REFUND = "refund"
    CAPTURE = "capture"
    CANCEL = "cancel"
    CANCEL_SUBSCRIPTION = "cancel_subscription"
    RESUME_SUBSCRIPTION = "resume_subscription"
    CHANGE_SUBSCRIPTION = "change_subscription"


class ActionState(StrEnum):
    """What became of something that was to be done with a payment."""

    PENDING = "pending"
    DONE = "done"
    REFUSED = "refused"
    STUCK = "stuck"


class PaymentOrigin(StrEnum):
    """What a payment began with, as callers know it."""

    CHECKOUT = "checkout"
    PAYMENT_INTENT = "payment_intent"
    RENEWAL = "renewal"


class CaptureMethod(StrEnum):
    """When money that was authorised is taken: at once, or when the app asks for it."""

    AUTOMATIC = "automatic"
    MANUAL = "manual"


class KeyScope(StrEnum):
    """What an app's key is good for, each for all that the ones before it are."""

    READ = "read"
    WRITE = "write"
    MONEY = "money"


class AppEventType(StrEnum):
    """What an app is told of, in the order in which one change tells several."""

    PAYMENT_CREATED = "payment.created"
    PAYMENT_PROCESSING = "payment.processing"
    PAYMENT_REQUIRES_ACTION = "payment.requires_action"
    PAYMENT_REQUIRES_CAPTURE = "payment.requires_capture"
    PAYMENT_SUCCEEDED = "payment.succeeded"
    PAYMENT_FAILED = "payment.failed"
    PAYMENT_CANCELED = "payment.canceled"
    PAYMENT_EXPIRED = "payment.expired"
    PAYMENT_REFUNDED = "payment.refunded"
    PAYMENT_REFUND_FAILED = "payment.refund_failed"
    PAYMENT_DISPUTED = "payment.disputed"
    PAYMENT_DISPUTE_CLOSED = "payment.dispute_closed"
    SUBSCRIPTION_STARTED = "subscription.started"
    SUBSCRIPTION_TRIAL_ENDING = "subscription.trial_ending"
    SUBSCRIPTION_RENEWED = "subscription.renewed"
    SUBSCRIPTION_PAST_DUE = "subscription.past_due"
    SUBSCRIPTION_CHANGED = "subscription.changed"
    SUBSCRIPTION_ENDED = "subscription.ended"
    PAYMENT_METHOD_SAVED = "payment_method.saved"
    PAYMENT_METHOD_REMOVED = "payment_method.removed"
    # An app's own test of its endpoint.
    PING = "ping"


class DeliveryState(StrEnum):
    """How far an event has come on its way to an endpoint."""

    WAITING = "waiting"
    SENDING = "sending"
    DONE = "done"
    DEAD = "dead"


UNDELIVERED = "state IN ('waiting', 'sending')"


class Step(StrEnum):
    """How far an operation has walked: `app/services/operations/engine.py` says what each means."""

    ACCEPTED = "accepted"
    ASKED = "asked"
    TAKEN = "taken"
    FINISHED = "finished"


class PaymentStatus(StrEnum):
    """What has become of a payment, as callers see it."""

    CREATING = "creating"
    REJECTED = "rejected"
    CHECKOUT_CREATED = "checkout_created"
    REQUIRES_PAYMENT_METHOD = "requires_payment_method"
    REQUIRES_CONFIRMATION = "requires_confirmation"
    REQUIRES_ACTION = "requires_action"
    PROCESSING = "processing"
    REQUIRES_CAPTURE = "requires_capture"
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    PARTIALLY_REFUNDED = "partially_refunded"
    REFUNDED = "refunded"
    DISPUTED = "disputed"


DIGEST_LENGTH = 16

# A failed try is no end; and what succeeded may be refunded or disputed, which Stripe lists apart.
OPEN_PAYMENTS = (
    "status IN ('checkout_created', 'requires_payment_method', 'requires_confirmation', 'requires_action',"
    " 'processing', 'requires_capture', 'pending', 'failed')"
)


class MovementKind(StrEnum):
    """What moved a payment's money."""

    RECEIVED = "received"
    REFUNDED = "refunded"
    DISPUTED = "disputed"


class TrackingState(StrEnum):
    """Whether runs-service knows of an operation and its cost; or that nobody but a person can decide about it."""

    NONE = "none"
    PENDING = "pending"
    COMPLETE = "complete"
    FAILED = "failed"
    STUCK = "stuck"


def _one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(str(v)) for v in values)})", name=f"known_{column}")


def _where_known(table: str, *columns: str) -> Index:
    """An index of the rows in which the first column says something."""
    return Index(
        f"ix_{table}_{'_'.join(column.split()[0] for column in columns)}",
        *map(text, columns),
        postgresql_where=text(f"{columns[0]} IS NOT NULL"),
    )


class Payment(Base):
    """What has become of money: what was asked for, and what the payment's events say."""

    __tablename__ = "payments"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    app_id: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    # Whom it is for.
    org_id: Mapped[str | None] = mapped_column(String(200))
    # The run that its cost is on. A run of its own is known here once Stripe has answered.
    run_id: Mapped[str | None] = mapped_column(String(200))
    parent_run_id: Mapped[str | None] = mapped_column(String(200))
    brand_id: Mapped[str | None] = mapped_column(String(200))
    campaign_id: Mapped[str | None] = mapped_column(String(200))
    description: Mapped[str | None] = mapped_column(Text)
    capture_method: Mapped[str] = mapped_column(String(10), server_default=CaptureMethod.AUTOMATIC)
    # `metadata` is SQLAlchemy's own attribute on a model.
    payment_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=text("'{}'::jsonb"))

    # What its events say: the columns of `PaymentState` in `app/services/events/projection.py`.
    status: Mapped[str] = mapped_column(String(30), server_default=PaymentStatus.CREATING)
    amount_in_cents: Mapped[int | None] = mapped_column(BigInteger)
    currency: Mapped[str | None] = mapped_column(String(3))
    stripe_payment_intent_id: Mapped[str | None] = mapped_column(String(255))
    stripe_checkout_session_id: Mapped[str | None] = mapped_column(String(255))
    stripe_subscription_id: Mapped[str | None] = mapped_column(String(255))
    stripe_invoice_id: Mapped[str | None] = mapped_column(String(255))
    stripe_charge_id: Mapped[str | None] = mapped_column(String(255))
    stripe_customer_id: Mapped[str | None] = mapped_column(String(255))
    amount_received_in_cents: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    amount_refunded_in_cents: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    amount_disputed_in_cents: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # Of what is disputed, what won't come back.
    amount_lost_in_cents: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    success_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    failure_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    refund_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    dispute_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    movements_digest: Mapped[str | None] = mapped_column(String(DIGEST_LENGTH))
    # Of each refund and dispute, by its id, the status at Stripe.
    refund_statuses: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    dispute_statuses: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))

    # How many of its states its app was told of.
    state_number: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))

    __table_args__ = (
        _one_of("kind", PaymentKind),
        _one_of("status", PaymentStatus),
        _one_of("capture_method", CaptureMethod),
        CheckConstraint(
            "amount_received_in_cents >= 0 AND amount_refunded_in_cents >= 0 AND amount_disputed_in_cents >= 0"
            " AND amount_lost_in_cents >= 0",
            name="no_negative_amount",
        ),
        CheckConstraint(
            "status IN ('creating', 'rejected')"
            " OR coalesce(stripe_payment_intent_id, stripe_checkout_session_id, stripe_invoice_id) IS NOT NULL",
            name="taken_has_stripe_object",
        ),
        # What reconciliation reads where Stripe lists the events no more.
        Index("ix_payments_app_id_open", "app_id", "created_at", "id", postgresql_where=text(OPEN_PAYMENTS)),
        # Lists, newest first, and statistics.
        *(
            _where_known("payments", column, "created_at DESC", "id DESC")
            for column in ("org_id", "run_id", "parent_run_id")
        ),
        _where_known("payments", "brand_id"),
        _where_known("payments", "campaign_id"),
        # The statistics of a whole app come from this index alone, without a look at the rows.
        Index(
            "ix_payments_app_id_created_at_statistics",
            "app_id",
            "created_at",
            postgresql_include=[
                "status",
                "currency",
                "amount_in_cents",
                "amount_received_in_cents",
                "amount_refunded_in_cents",
                "amount_disputed_in_cents",
                "success_count",
                "failure_count",
                "refund_count",
                "dispute_count",
            ],
        ),
    )


class Operation(Base):
    """One thing that Stripe is asked for, exactly once. The operation that creates a payment has the payment's id."""

    __tablename__ = "operations"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    app_id: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(20))
    # Deferred, since the operation that creates a payment is inserted before it, in one transaction.
    payment_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("payments.id", deferrable=True, initially="DEFERRED")
    )
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    # The request as it was validated, and what it is about at Stripe, so that any process can take it further.
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_hash: Mapped[bytes] = mapped_column(BYTEA)
    request: Mapped[dict[str, Any]]

    # How far it has walked, and who is walking it: only the holder of the lease's token may move it. A finished one
    # has no lease, so that the index of what is left changes with the first and the last step only.
    step: Mapped[str] = mapped_column(String(10))
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    lease_token: Mapped[uuid.UUID]
    lease_until: Mapped[datetime | None]
    # What recovery did last and when it tries again, where it had to give up for now.
    recovery_tries: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    recover_at: Mapped[datetime | None]

    # The very bytes of the parameters that Stripe is asked with, again if need be.
    stripe_params: Mapped[bytes | None] = mapped_column(BYTEA)
    asked_at: Mapped[datetime | None]
    # Stripe stored a failure for the first idempotency key and was asked under a second one.
    asked_anew: Mapped[bool] = mapped_column(server_default=text("false"))
    # What the caller was answered, less what only Stripe keeps; a retry is given it again.
    answer_status: Mapped[int | None] = mapped_column(SmallInteger)
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON)

    # The run that its cost is on.
    run_id: Mapped[str | None] = mapped_column(String(200))
    tracking_state: Mapped[str] = mapped_column(String(10))
    tracking_error: Mapped[str | None] = mapped_column(Text)
    # Between these two moments a run may have been made that no operation knows.
    run_search_from: Mapped[datetime | None]
    run_search_until: Mapped[datetime | None]

    __table_args__ = (
        _one_of("kind", OperationKind),
        _one_of("step", Step),
        _one_of("tracking_state", TrackingState),
        CheckConstraint("attempt > 0", name="attempt_counts_from_one"),
        CheckConstraint("(answer_status IS NULL) = (answer IS NULL)", name="answer_is_whole"),
        CheckConstraint(
            "step <> 'asked' OR (asked_at IS NOT NULL AND stripe_params IS NOT NULL)", name="asked_is_stamped"
        ),
        CheckConstraint("(step = 'finished') = (lease_until IS NULL)", name="unfinished_has_lease"),
        Index(
            "uq_operations_app_id_idempotency_key",
            "app_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        # What was done with a payment.
        Index("ix_operations_payment_id_actions", "payment_id", postgresql_where=text("id <> payment_id")),
        # What recovery has to look at.
        _where_known("operations", "lease_until"),
        _where_known("operations", "run_search_until"),
    )


class MoneyMovement(Base):
    """Money of a payment that moved, as its projection says: what statistics by time are computed from.

    The app and the organisation are the payment's, so that these are read from an index alone.
    """

    __tablename__ = "money_movements"

    payment_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("payments.id"), primary_key=True)
    # Its place among the payment's, in the order of time.
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    app_id: Mapped[str] = mapped_column(String(200))
    org_id: Mapped[str | None] = mapped_column(String(200))
    occurred_at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(10))
    amount_in_cents: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str | None] = mapped_column(String(3))

    __table_args__ = (
        _one_of("kind", MovementKind),
        CheckConstraint("amount_in_cents > 0", name="moves_something"),
        Index(
            "ix_money_movements_app_id_occurred_at",
            "app_id",
            "occurred_at",
            postgresql_include=["currency", "kind", "amount_in_cents"],
        ),
        Index(
            "ix_money_movements_org_id_occurred_at",
            "org_id",
            "occurred_at",
            postgresql_include=["app_id", "currency", "kind", "amount_in_cents"],
            postgresql_where=text("org_id IS NOT NULL"),
        ),
    )


class Customer(Base):
    """Which customer at Stripe is an organisation's. What is personal stays there."""

    __tablename__ = "customers"

    # The idempotency key under which Stripe makes it.
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    app_id: Mapped[str] = mapped_column(String(200))
    org_id: Mapped[str] = mapped_column(String(200))
    # None until Stripe has answered.
    stripe_customer_id: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "uq_customers_app_id_org_id", "app_id", "org_id", unique=True, postgresql_where=text("deleted_at IS NULL")
        ),
        Index("uq_customers_stripe_customer_id_app_id", "stripe_customer_id", "app_id", unique=True),
    )


class StripeObject(Base):
    """Which payment an object of Stripe's belongs to: the way from an event to its payment."""

    __tablename__ = "stripe_objects"

    # Alone in the key: no app can claim what is known to be another's, whatever its own webhooks say.
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    app_id: Mapped[str] = mapped_column(String(200))
    payment_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("payments.id"))


class Subscription(Base):
    """A subscription that began with one of our checkouts, and what its events say of it."""

    __tablename__ = "subscriptions"

    app_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    # The payment that it began with, which holds its events, and whom it is for.
    payment_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("payments.id"))
    org_id: Mapped[str | None] = mapped_column(String(200))

    # The columns of `SubscriptionState` in `app/services/events/subscription.py`; all empty while nothing is known.
    status: Mapped[str | None] = mapped_column(String(30))
    customer_id: Mapped[str | None] = mapped_column(String(255))
    items: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB(none_as_null=True))
    current_period_start: Mapped[datetime | None]
    current_period_end: Mapped[datetime | None]
    cancel_at: Mapped[datetime | None]
    cancel_at_period_end: Mapped[bool | None]
    canceled_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    trial_end: Mapped[datetime | None]
    is_trial_ending: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime | None]
    # How many of its states its app was told of.
    state_number: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # When Stripe is to be asked what it is, where its events don't tell.
    recheck_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("status IS NOT NULL OR recheck_at IS NOT NULL", name="unknown_is_asked_for"),
        CheckConstraint("(status IS NULL) = (created_at IS NULL)", name="state_is_whole"),
        # Lists, newest first.
        _where_known("subscriptions", "org_id", "created_at DESC", "id DESC"),
        _where_known("subscriptions", "recheck_at"),
    )


class StripeEvent(Base):
    """A fact: what Stripe said, once; the object as it was then, without secrets.

    What Stripe answered to an operation is a fact as well, under the id `op_<operation>:<attempt>`.
    """

    __tablename__ = "stripe_events"

    # The app whose path or reconciliation brought it; empty for the path that all share.
    app_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    payment_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("payments.id"))
    type: Mapped[str] = mapped_column(String(255))
    created: Mapped[int] = mapped_column(BigInteger, comment="Stripe's, in seconds since 1970")
    object: Mapped[dict[str, Any]]
    # What the object's changed fields were before, where Stripe says so.
    previous: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    # The ids by which a payment may know the object: its own first.
    refs: Mapped[list[str]] = mapped_column(ARRAY(Text))
    # In which version of Stripe's API a webhook told it; a list tells it in the account's own.
    api_version: Mapped[str | None] = mapped_column(String(40))
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index("ix_stripe_events_payment_id", "payment_id", postgresql_where=text("payment_id IS NOT NULL")),
        # A payment's charges, refunds and disputes by their own id.
        Index("ix_stripe_events_own_id", text("(refs[1])"), postgresql_where=text("payment_id IS NOT NULL")),
        # Those that wait for a payment to learn an id of theirs, and are deleted when none does.
        Index("ix_stripe_events_refs", "refs", postgresql_using="gin", postgresql_where=text("payment_id IS NULL")),
        Index("ix_stripe_events_received_at", "received_at"),
        # What Stripe listed and nobody could read, for people to look at.
        Index("ix_stripe_events_unreadable", "received_at", postgresql_where=text("type = 'unreadable'")),
    )


class ApiKey(Base):
    """A key of an app, by its hash: what it is good for, and until when."""

    __tablename__ = "api_keys"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    app_id: Mapped[str] = mapped_column(String(200))
    name: Mapped[str | None] = mapped_column(String(200))
    scope: Mapped[str] = mapped_column(String(10))
    hash: Mapped[bytes] = mapped_column(BYTEA, unique=True)
    # The end of the key, by which people tell one from another.
    hint: Mapped[str] = mapped_column(String(4))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    __table_args__ = (_one_of("scope", KeyScope), Index("ix_api_keys_created_at", "created_at"))

    @classmethod
    def live(cls) -> ColumnElement[bool]:
        """Whether a key is of use now."""
        return cls.revoked_at.is_(None) & or_(cls.expires_at.is_(None), cls.expires_at > func.now())


class Account(Base):
    """A Stripe account in one of its modes, and until when one process has its webhook endpoints to itself."""

    __tablename__ = "accounts"

    # Stripe's own, and `:test` behind it in test mode, which has keys, events and endpoints of its own.
    account_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    lease_token: Mapped[uuid.UUID]
    lease_until: Mapped[datetime]


class AppAccount(Base):
    """Whose Stripe account an app's key opens, and whether the events of that account come by the app's path."""

    __tablename__ = "app_accounts"

    app_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.account_id"))
    leads: Mapped[bool] = mapped_column(server_default=text("false"))
    # Its signing secrets may be of another account, which its key opened before; before it leads, these are dropped.
    has_moved: Mapped[bool] = mapped_column(server_default=text("false"))
    # When its account and the endpoint of that were last looked at; none after a look that failed.
    checked_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("NOT (leads AND has_moved)", name="lead_has_own_secrets"),
        Index("uq_app_accounts_account_id_leads", "account_id", unique=True, postgresql_where=text("leads")),
        Index("ix_app_accounts_account_id", "account_id"),
    )


class AppEvent(Base):
    """What an app is told: one change of one payment, written by the transaction that makes it."""

    __tablename__ = "app_events"

    # Of one payment's events, the later one has the greater number: they are made under a lock of its row.
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    # What apps know it by, also when it comes twice.
    id: Mapped[uuid.UUID] = mapped_column(unique=True)
    app_id: Mapped[str] = mapped_column(String(200))
    type: Mapped[str] = mapped_column(String(40))
    payment_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("payments.id"))
    subscription_id: Mapped[str | None] = mapped_column(Text)
    # Which state of the payment or the subscription it tells of, counted from 1.
    state_number: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Of the payment what can change, as it was then, and what of it was another before.
    data: Mapped[dict[str, Any]]

    __table_args__ = (
        _one_of("type", AppEventType),
        CheckConstraint(
            "num_nonnulls(payment_id, subscription_id) <= 1"
            " AND (state_number IS NULL) = (num_nonnulls(payment_id, subscription_id) = 0)",
            name="is_about_one_thing",
        ),
        # A state is told once.
        *(
            Index(
                f"uq_app_events_{column}_state_number",
                column,
                "state_number",
                "type",
                unique=True,
                postgresql_where=text(f"{column} IS NOT NULL"),
            )
            for column in ("payment_id", "subscription_id")
        ),
        Index("ix_app_events_app_id", "app_id", "number"),
    )


class EventEndpoint(Base):
    """Where an app wants to be told. Its secret is in key-service."""

    __tablename__ = "event_endpoints"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    app_id: Mapped[str] = mapped_column(String(200))
    url: Mapped[str] = mapped_column(Text)
    # Of what it is told; all where there are none.
    types: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    disabled_at: Mapped[datetime | None]
    # Since when nothing was taken there.
    failing_since: Mapped[datetime | None]
    # The endpoint has asked to be left alone until then.
    paused_until: Mapped[datetime | None]
    # How many deliveries each worker has under way to it at once.
    concurrency: Mapped[int] = mapped_column(SmallInteger, server_default=text("4"))
    # Until when the secret before signs as well.
    old_secret_until: Mapped[datetime | None]
    succeeded_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    failed_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))

    __table_args__ = (
        CheckConstraint("concurrency > 0", name="some_concurrency"),
        Index("ix_event_endpoints_app_id", "app_id"),
    )


class Delivery(Base):
    """An event on its way to an endpoint: made with the event, for each endpoint that there was."""

    __tablename__ = "deliveries"

    event_number: Mapped[int] = mapped_column(ForeignKey("app_events.number", ondelete="CASCADE"), primary_key=True)
    endpoint_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("event_endpoints.id", ondelete="CASCADE"), primary_key=True
    )
    # What it is about: of these, an endpoint is told one after the other.
    subject: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(10), server_default=DeliveryState.WAITING)
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    # Of one that is being sent, when another worker may take over.
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=func.now())
    lease_token: Mapped[uuid.UUID | None]
    last_status: Mapped[int | None] = mapped_column(SmallInteger)
    last_error: Mapped[str | None] = mapped_column(Text)
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        _one_of("state", DeliveryState),
        CheckConstraint("(state IN ('done', 'dead')) = (ended_at IS NOT NULL)", name="ended_is_stamped"),
        CheckConstraint("state <> 'sending' OR lease_token IS NOT NULL", name="sending_has_lease"),
        Index("ix_deliveries_next", "endpoint_id", "next_attempt_at", postgresql_where=text(UNDELIVERED)),
        Index("ix_deliveries_subject", "endpoint_id", "subject", "event_number", postgresql_where=text(UNDELIVERED)),
        Index("ix_deliveries_dead", "endpoint_id", "ended_at", postgresql_where=text("state = 'dead'")),
    )


class EventCursor(Base):
    """Up to when an app's events were asked for, and until when one process has the asking to itself."""

    __tablename__ = "event_cursors"

    app_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    reconciled_until: Mapped[datetime | None]
    lease_token: Mapped[uuid.UUID]
    lease_until: Mapped[datetime]
    # The window that is being read, where one was left in its middle: what it reaches from and to, the types of events
    # that are left to ask for, and the last event that was read of the first of them.
    window_since: Mapped[datetime | None]
    window_until: Mapped[datetime | None]
    types_left: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    last_event_id: Mapped[str | None] = mapped_column(String(255))

    __table_args__ = (
        CheckConstraint(
            "(window_since IS NULL) = (window_until IS NULL) AND (window_since IS NULL) = (types_left IS NULL)"
            " AND (last_event_id IS NULL OR window_since IS NOT NULL)",
            name="window_is_whole",
        ),
    )
