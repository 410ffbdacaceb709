"""`flask version`."""

from app import create_app
from app.config import Settings
from app.version import VERSION


class TestVersion:
    def test_it_shows_ours_and_not_flasks(self) -> None:
        result = create_app(Settings.from_environment({})).test_cli_runner().invoke(args=["version"])

        assert (result.exit_code, result.stdout) == (0, f"stripe-service {VERSION}\n")
