"""A migration runs beside the version before it: that version's code is run on the newest schema."""

import io
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from alembic.script import ScriptDirectory
from flask import Flask
from sqlalchemy import Connection, create_engine, text

from app.services.operators import readiness
from tests.databases import ROOT, migrate, migrated_database
from tests.factories import checkout, intent
from tests.stand_ins import StandIns
from tests.web import API_KEY, WebProcess
from tests.webhooks import event, paid_intent, try_to_deliver

MIGRATION = """
from alembic import op

revision = "{revision}"
down_revision = "{after}"


def upgrade() -> None:
    op.execute("INSERT INTO seen SELECT '{revision}', current_setting('lock_timeout')")
    with op.get_context().autocommit_block():
        op.create_index("ix_{revision}", "payments", ["app_id"], postgresql_concurrently=True)
"""
MIGRATIONS = sorted(ScriptDirectory(str(ROOT / "migrations")).walk_revisions(), key=lambda script: script.path)


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def is_known_to_git() -> bool:
    """Whether there is a git here, and a history that it may read."""
    asked = ["git", "rev-parse", "--verify", "HEAD"]
    return bool(shutil.which("git")) and subprocess.run(asked, cwd=ROOT, capture_output=True).returncode == 0


@pytest.fixture
def previous_version(tmp_path: Path) -> Path:
    """The code as it was before the newest migration came, in a directory of its own.

    Before the first there was none, and one that isn't committed yet came after all that is.
    """
    newest = Path(MIGRATIONS[-1].path).relative_to(ROOT)
    added = git("log", "--diff-filter=A", "--format=%H", "-1", "--", str(newest)).decode().strip()
    before = f"{added}^" if added and len(MIGRATIONS) > 1 else "HEAD"
    archive = git("archive", before, "app", "migrations", "wsgi.py", "pyproject.toml")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path, filter="data")
    return tmp_path


RUNS_BESIDE_PREVIOUS = getattr(MIGRATIONS[-1].module, "RUNS_BESIDE_PREVIOUS", True)


class TestPreviousVersion:
    @pytest.mark.skipif(not is_known_to_git(), reason="the version before is known to git only")
    def test_it_serves_on_the_newest_schema_or_does_nothing(
        self, environment: dict[str, str], stand_ins: StandIns, app: Flask, previous_version: Path
    ) -> None:
        """Fails when a migration drops or renames what the version before it uses, or adds what it doesn't fill in,
        and doesn't say so; and when one that says so lets the version before ask anybody for anything.
        """
        serve = self.serves if RUNS_BESIDE_PREVIOUS else self.does_nothing
        serve(environment, stand_ins, previous_version)

    def does_nothing(self, environment: dict[str, str], stand_ins: StandIns, previous_version: Path) -> None:
        with WebProcess.start(environment, directory=previous_version) as web:
            refused = [web.post("/payment-intent/create", intent()), web.post("/checkout/create", checkout())]
            told = event("payment_intent.succeeded", paid_intent("pi_1"))

            assert [answer.status_code for answer in refused] == [500, 500]
            assert try_to_deliver(web, told) == 500
        assert stand_ins.effects() == []

    def serves(self, environment: dict[str, str], stand_ins: StandIns, previous_version: Path) -> None:
        with WebProcess.start(environment, directory=previous_version) as web:
            made = web.post("/payment-intent/create", intent())
            opened = web.post("/checkout/create", checkout())
            assert (made.status_code, opened.status_code) == (200, 200), web.printed()
            told = event("payment_intent.succeeded", paid_intent(made.json()["paymentIntentId"]))
            assert try_to_deliver(web, told) == 200

            def get(path: str) -> requests.Response:
                return requests.get(web.url + path, headers={"X-API-Key": API_KEY}, timeout=10)

            assert get(f"/status/{made.json()['paymentId']}").json()["payment"]["status"] == "succeeded"
            assert len(get("/status/by-org/org_1").json()["payments"]) == 2
            assert get("/stats").json()["totalPayments"] == 2
            assert get("/health/ready").status_code == 200


class TestReadiness:
    @pytest.mark.parametrize(
        ("revision", "status"), [("0000_before", 503), ("9999_after", 200), (None, 503)], ids=["older", "newer", "none"]
    )
    def test_it_serves_on_a_newer_schema_and_not_on_an_older_one(
        self, app: Flask, db: Connection, monkeypatch: pytest.MonkeyPatch, revision: str | None, status: int
    ) -> None:
        monkeypatch.setattr(readiness, "_older_revisions", lambda: {"0000_before"})
        current = db.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        try:
            db.execute(text("DELETE FROM alembic_version"))
            if revision:
                db.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})
            answer = app.test_client().get("/health/ready")
            assert answer.status_code == status
            assert answer.json["checks"]["migrations"] == ("ok" if status == 200 else "not at head")
        finally:
            db.execute(text("DELETE FROM alembic_version"))
            db.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": current})


@pytest.fixture
def two_more(tmp_path: Path) -> Path:
    """The directory of the migrations and of two more, which write down that they ran."""
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    after = MIGRATIONS[-1].revision
    for revision in ("next", "last"):
        script = MIGRATION.format(revision=revision, after=after)
        (tmp_path / "migrations" / "versions" / f"{revision}.py").write_text(script)
        after = revision
    return tmp_path / "migrations"


class TestMigrations:
    def test_each_waits_for_no_lock_for_long_and_may_make_an_index_concurrently(
        self, server_url: str, two_more: Path
    ) -> None:
        """Fails when the first of several migrations alone has the bound."""
        with migrated_database(server_url) as url:
            engine = create_engine(url, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(text("CREATE TABLE seen (revision text, lock_timeout text)"))
                migrate(url, directory=two_more)
                seen = connection.execute(text("SELECT * FROM seen")).all()
            engine.dispose()
        assert [tuple(row) for row in seen] == [("next", "5s"), ("last", "5s")]

    def test_they_run_once_on_an_empty_database_when_several_upgrade_it_at_once(
        self, server_url: str, two_more: Path
    ) -> None:
        """Fails when two may run one migration, and when who waits holds up an index that is made concurrently."""
        with migrated_database(server_url) as url:
            engine = create_engine(url, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection, ThreadPoolExecutor(3) as threads:
                connection.execute(text("DROP SCHEMA public CASCADE"))
                connection.execute(text("CREATE SCHEMA public"))
                connection.execute(text("CREATE TABLE seen (revision text, lock_timeout text)"))
                for upgrade in [threads.submit(migrate, url, directory=two_more) for _ in range(3)]:
                    upgrade.result()
                assert connection.execute(text("SELECT revision FROM seen")).scalars().all() == ["next", "last"]
                assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["last"]
            engine.dispose()
