"""The search for orphan runs: which runs are failed, and which are let be."""

from typing import Any

from flask.testing import FlaskClient
from sqlalchemy import Connection

from app.services import Services
from app.services.kinds import KINDS
from app.services.operations.recovery import recover_operations
from tests.books import end_orphan_runs_at_once
from tests.factories import intent
from tests.stand_ins import StandIns


def leave_orphan(client: FlaskClient, services: Services, stand_ins: StandIns, **changes: Any) -> str:
    """Have a run made whose answer is lost; return its id."""
    before = stand_ins.runs().keys()
    stand_ins.fault("runs-service", "reset", method="POST", executed=True)
    assert client.post("/payment-intent/create", json=intent(**changes)).status_code == 503
    list(recover_operations(services, KINDS, command="flask recover"))
    (run_id,) = stand_ins.runs().keys() - before
    return run_id


class TestEndOrphanRuns:
    def test_it_lets_be_what_has_another_parent_than_the_operation_gave(
        self, client: FlaskClient, services: Services, stand_ins: StandIns, db: Connection
    ) -> None:
        """Another deployment on the same runs-service is creating a payment for the same organisation.

        Fails when all runs of the organisation in that time are taken for the operation's.
        """
        ours, theirs = stand_ins.new_run(), stand_ins.new_run()
        foreign = leave_orphan(client, services, stand_ins, runId=theirs)
        db.exec_driver_sql("DELETE FROM payments; DELETE FROM operations")
        orphan = leave_orphan(client, services, stand_ins, runId=ours)

        assert end_orphan_runs_at_once(services, db) == [orphan]
        assert stand_ins.runs()[foreign]["status"] == "running"
