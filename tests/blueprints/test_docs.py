"""The page that shows the OpenAPI document, and the one key that it may show."""

import dataclasses

import pytest
from flask import Flask

from app import create_app
from app.config import Settings
from app.sandbox.service import create_service
from app.sandbox.settings import SandboxSettings

KNOWN_KEY = SandboxSettings.service_api_key


def page_of(app: Flask) -> str:
    with app.test_client().get("/docs/") as response:
        assert response.status_code == 200
        return response.text


class TestPage:
    def test_it_keeps_the_key_that_was_typed_and_names_no_validator(self, app: Flask) -> None:
        page = page_of(app)

        assert '"persistAuthorization": true' in page
        assert '"validatorUrl": null' in page

    def test_it_shows_no_key_in_production(self, settings: Settings) -> None:
        keys = ("of-production", KNOWN_KEY)
        page = page_of(create_app(dataclasses.replace(settings, api_keys=keys)))

        assert "preauthorizeApiKey" not in page
        assert not [key for key in keys if key in page]

    def test_it_shows_the_key_that_everybody_knows_in_the_sandbox(self, settings: Settings) -> None:
        page = page_of(create_service(dataclasses.replace(settings, api_keys=("of-a-person", KNOWN_KEY))))

        assert f'preauthorizeApiKey("ApiKey", "{KNOWN_KEY}")' in page
        assert "of-a-person" not in page

    def test_it_shows_no_key_in_the_sandbox_when_another_was_set(self, settings: Settings) -> None:
        page = page_of(create_service(dataclasses.replace(settings, api_keys=("of-a-person",))))

        assert "preauthorizeApiKey" not in page
        assert "of-a-person" not in page

    def test_it_leads_to_the_stand_ins_where_they_play_a_part(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SANDBOX_PORT", "3999")
        played = dataclasses.replace(settings, key_service_url="http://127.0.0.1:3999/key-service")

        assert '<a href="http://127.0.0.1:3999/">' in page_of(create_service(played))
        assert "the stand-ins" not in page_of(create_service(settings))
        assert "the stand-ins" not in page_of(create_app(played))
