"""`flask keys`, and the routes that do the same."""

import re
from datetime import timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from tests.cli import Run

KEY = re.compile(r"ss_[\w-]{43}")


class TestCommands:
    def test_a_key_is_made_listed_rotated_and_revoked(self, app: Flask, flask: Run, db: Connection) -> None:
        made = flask("keys", "create", "--app", "shop", "--name", "billing", "--scope", "read")
        assert made.exit_code == 0
        (key,) = KEY.findall(made.stdout)
        key_id = str(db.execute(text("SELECT id FROM api_keys")).scalar_one())
        assert key_id in made.stderr

        client = app.test_client()
        assert client.get("/stats", headers={"X-API-Key": key}).status_code == 200
        listed = flask("keys", "list", "--app", "shop")
        assert key[-4:] in listed.stdout
        assert key not in listed.stdout
        assert flask("keys", "list", "--app", "other").stdout.startswith("There is no key.")

        (rotated,) = KEY.findall(flask("keys", "rotate", key_id, "--overlap-hours", "1").stdout)
        assert client.get("/stats", headers={"X-API-Key": rotated}).status_code == 200
        ends_in = db.execute(
            text("SELECT expires_at - now() FROM api_keys WHERE id = :id"), {"id": key_id}
        ).scalar_one()
        assert timedelta(minutes=59) < ends_in <= timedelta(hours=1)
        assert flask("keys", "revoke", key_id).stdout == f"Key {key_id} is revoked.\n"
        assert db.execute(text("SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL")).scalar_one() == 1

    @pytest.mark.parametrize("key_id", ["nope", "8f6d2c1e-0000-4000-8000-000000000000"])
    @pytest.mark.parametrize("command", ["rotate", "revoke"])
    def test_it_says_when_there_is_no_such_key(self, flask: Run, command: str, key_id: str) -> None:
        result = flask("keys", command, key_id)
        assert (result.exit_code, result.stderr) == (1, "Error: Key not found\n")

    @pytest.mark.parametrize("app_id", ["", "..", "a b", "x" * 201])
    def test_it_makes_none_for_what_is_no_app(self, flask: Run, app_id: str) -> None:
        result = flask("keys", "create", "--app", app_id)
        assert result.exit_code == 2
        assert "--app" in result.stderr


class TestRoutes:
    def test_they_do_the_same(self, client: FlaskClient) -> None:
        made = client.post("/keys/create", json={"appId": "shop", "name": "billing"}).json
        assert (made["success"], bool(KEY.fullmatch(made["key"]))) == (True, True)
        (listed,) = client.get("/keys?appId=shop").json["keys"]
        assert {name: listed[name] for name in ("keyId", "appId", "name", "scope", "hint", "revokedAt")} == {
            "keyId": made["keyId"], "appId": "shop", "name": "billing", "scope": "write", "hint": made["key"][-4:],
            "revokedAt": None,
        }  # fmt: skip
        rotated = client.post("/keys/rotate", json={"keyId": made["keyId"], "overlapHours": 0}).json
        assert rotated["key"] != made["key"]
        assert client.post("/keys/revoke", json={"keyId": rotated["keyId"]}).json == {"success": True}
        # One that has ended, or was revoked, is of no use to make another from.
        for key_id in (made["keyId"], rotated["keyId"]):
            assert client.post("/keys/rotate", json={"keyId": key_id}).status_code == 404
        ended = {key["keyId"]: (key["expiresAt"], key["revokedAt"]) for key in client.get("/keys").json["keys"]}
        assert ended[made["keyId"]][0] is not None
        assert ended[rotated["keyId"]][1] is not None
