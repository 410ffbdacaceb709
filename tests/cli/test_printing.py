"""Printing: lines, summaries and tables."""

import json
from typing import Any

import pytest

from app.cli.printing import Printer, print_table
from app.services.operations.recovery import RecoveryOutcome


def print_all(printer: Printer) -> None:
    printer.thing("reconciled", app="shop", told=0, error=None, reason="")
    printer.thing(RecoveryOutcome.PUT_OFF, operation=1)
    printer.thing(RecoveryOutcome.PUT_OFF, operation=2)
    printer.summary("nothing")


class TestPrinter:
    def test_it_prints_a_line_a_thing_without_empty_fields_and_counts_them(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        print_all(Printer(as_json=False))

        assert capsys.readouterr().out.splitlines() == [
            "reconciled app=shop told=0",
            "put off operation=1",
            "put off operation=2",
            "1 reconciled, 2 put off",
        ]

    def test_it_prints_the_same_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_all(Printer(as_json=True))

        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
            {"kind": "reconciled", "app": "shop", "told": 0},
            {"kind": "put off", "operation": 1},
            {"kind": "put off", "operation": 2},
            {"kind": "summary", "reconciled": 1, "put off": 2},
        ]

    def test_it_says_that_there_was_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        Printer(as_json=False).summary("nothing to do")
        Printer(as_json=True).summary("nothing to do")
        assert capsys.readouterr().out == 'nothing to do\n{"kind":"summary"}\n'


class TestPrintTable:
    @pytest.mark.parametrize(
        ("rows", "lines"),
        [
            ([], ["  none"]),
            (
                [{"id": 1, "name": "first"}, {"id": 100, "name": None}],
                ["  id   name", "  1    first", "  100"],
            ),
        ],
    )
    def test_it_prints_columns_as_wide_as_what_is_in_them(
        self, rows: list[dict[str, Any]], lines: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        print_table(rows)
        assert capsys.readouterr().out.splitlines() == lines
