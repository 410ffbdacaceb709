"""Fixtures for tests of what is done with payments."""

import pytest
from flask.testing import FlaskClient

from tests.services.payments.test_actions import Actor
from tests.stand_ins import StandIns


@pytest.fixture
def actor(client: FlaskClient, stand_ins: StandIns) -> Actor:
    return Actor(client, stand_ins)
