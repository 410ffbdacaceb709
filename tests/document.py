"""The OpenAPI document as tests read it: its operations, with the examples of what each takes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "openapi" / "openapi.json"
DOCUMENT = json.loads(PATH.read_text())


@dataclass(frozen=True)
class Operation:
    """A route and a method of the document."""

    method: str
    path: str

    @property
    def described(self) -> dict[str, Any]:
        return dict(DOCUMENT["paths"][self.path][self.method])

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return [*DOCUMENT["paths"][self.path].get("parameters", ()), *self.described.get("parameters", ())]

    @property
    def request(self) -> Any:
        """The example of the body, or nothing where there is none."""
        return self.described["requestBody"]["content"]["application/json"]["example"] if self.takes_body else None

    @property
    def takes_body(self) -> bool:
        return "requestBody" in self.described

    def bodies(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each body of the request and of the answers, by what it is of."""
        whole = {
            **self.described["responses"],
            **({"request": self.described["requestBody"]} if self.takes_body else {}),
        }
        for name, body in whole.items():
            for media in body.get("content", {}).values():
                yield name, media

    def examples_in(self, place: str) -> dict[str, Any]:
        """The values that are sent in the query, the path or a header, where something has to be."""
        there = [each for each in self.parameters if each["in"] == place and each["required"]]
        return {each["name"]: each["schema"].get("example") for each in there}


OPERATIONS = [
    Operation(method, path) for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"
]
