"""What the service says of itself."""

from app import create_app
from app.config import Settings
from app.version import VERSION


class TestHealth:
    def test_it_names_the_service_and_its_version_without_a_database(self) -> None:
        answer = create_app(Settings.from_environment({})).test_client().get("/health")

        assert answer.status_code == 200
        assert answer.json == {"status": "ok", "service": "stripe-service", "version": VERSION}
