"""Who may call."""

from dataclasses import replace

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from app.config import Settings

PUBLIC = ["/", "/health", "/health/ready", "/openapi.json", "/docs/", "/docs/swagger-ui.css"]


class TestRequireApiKey:
    @pytest.mark.parametrize("path", PUBLIC)
    def test_it_lets_anyone_see_what_is_public(self, app: Flask, path: str) -> None:
        with app.test_client().get(path) as response:
            assert response.status_code == 200

    @pytest.mark.parametrize("path", ["/status/x", "/checkout/create", "/unknown", "/docsx", "/health/readyx"])
    def test_it_answers_401_without_a_key(self, app: Flask, path: str) -> None:
        response = app.test_client().get(path)

        assert response.status_code == 401
        assert response.json["error"] == "Missing API key"
        assert list(response.json["details"]["fieldErrors"]) == ["X-API-Key"]

    @pytest.mark.parametrize("key", ["wrong", "caller-ke", "caller-keyy", "caf\u00e9", "\xff\xfe", "CALLER-KEY"])
    def test_it_answers_403_for_another_key(self, app: Flask, key: str) -> None:
        response = app.test_client().get("/status/x", headers={"X-API-Key": key})

        assert response.status_code == 403
        assert response.json["error"] == "Invalid API key"

    def test_it_takes_each_of_several_keys(self, settings: Settings) -> None:
        client = create_app(replace(settings, api_keys=("old", "n\u00e9w"))).test_client()

        assert client.get("/status/x", headers={"X-API-Key": "old"}).status_code == 404
        as_sent = "n\u00e9w".encode().decode("latin-1")
        assert client.get("/status/x", headers={"X-API-Key": as_sent}).status_code == 404

    def test_it_lets_nobody_in_without_settings(self) -> None:
        client = create_app(Settings.from_environment({})).test_client()

        assert client.get("/status/x", headers={"X-API-Key": "None"}).status_code == 403


class TestRequestId:
    def test_it_keeps_a_sane_one(self, client: FlaskClient) -> None:
        response = client.get("/status/x", headers={"X-Request-ID": "abc-1.2:3"})

        assert response.headers["X-Request-ID"] == response.json["requestId"] == "abc-1.2:3"

    @pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "<script>", "caf\u00e9"])
    def test_it_makes_one_where_the_callers_is_not_sane(self, client: FlaskClient, sent: str) -> None:
        made = client.get("/health", headers={"X-Request-ID": sent}).headers["X-Request-ID"]

        assert made != sent
        assert len(made) == 32


class TestErrors:
    def test_it_keeps_allow_when_the_method_is_wrong(self, client: FlaskClient) -> None:
        response = client.get("/checkout/create")

        assert response.status_code == 405
        assert "POST" in response.headers["Allow"]
        assert set(response.json) == {"error", "code", "requestId"}

    def test_it_shows_nothing_of_a_bug(self, app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
        def break_down(*_: object, **__: object) -> None:
            raise RuntimeError("sk_live_secret")

        monkeypatch.setattr("app.blueprints.status.find_payment", break_down)
        response = client.get("/status/x")

        assert response.status_code == 500
        assert response.json["error"] == "Internal server error"
        assert "secret" not in response.text
