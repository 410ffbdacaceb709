"""`flask sandbox`: the stand-ins as a process."""

import re
import signal

import pytest
import requests

from app import create_app
from app.config import Settings
from tests.cli.processes import Command


class TestSandbox:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_runs_the_stand_ins_until_a_signal(self, number: signal.Signals) -> None:
        with Command.start("sandbox", environment={"SANDBOX_PORT": "0"}) as sandbox:
            sandbox.wait_until(sandbox.printed, what="the address")
            (url,) = re.findall(r"http://\S+", sandbox.printed()[0])
            assert requests.get(f"{url}/_sandbox/state", timeout=10).ok

            assert sandbox.end(number) == 0
            assert sandbox.complained() == []

    def test_it_fails_with_a_sentence_when_a_setting_is_unusable(self) -> None:
        app = create_app(Settings.from_environment({}))
        result = app.test_cli_runner(env={"SANDBOX_PORT": "none"}).invoke(args=["sandbox"])

        assert result.stderr == "Error: SANDBOX_PORT must be a port number from 0 to 65535, not 'none'.\n"
        assert result.exit_code == 1
