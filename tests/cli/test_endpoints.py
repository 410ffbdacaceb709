"""`flask endpoints`: what is told to Stripe needs neither settings nor a database."""

import pytest
from click.testing import Result

from app import create_app
from app.config import Settings
from app.services.reconciliation.reconcile import EVENT_TYPES


def show_types(*options: str) -> Result:
    return create_app(Settings.from_environment({})).test_cli_runner().invoke(args=["endpoints", "types", *options])


class TestTypes:
    def test_it_shows_each_type_that_reconciliation_asks_for(self) -> None:
        result = show_types()

        assert (result.exit_code, result.stderr) == (0, "")
        assert tuple(result.stdout.splitlines()) == EVENT_TYPES

    def test_it_shows_them_as_stripe_listen_takes_them(self) -> None:
        result = show_types("--comma")

        assert result.stdout.count("\n") == 1
        assert tuple(result.stdout.strip().split(",")) == EVENT_TYPES

    @pytest.mark.parametrize("name", ["checkout.session.completed", "payment_intent.succeeded", "charge.refunded"])
    def test_what_a_payment_lives_by_is_among_them(self, name: str) -> None:
        assert name in show_types().stdout.splitlines()
