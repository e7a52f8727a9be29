"""Answers of a bundle in a process of its own, for ``predict --processes``.

    python -m medloom.workflows.answer_child JSON

Reads a line of items, prints a line with their rows, until there are no more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NoReturn

from medloom.deployment.bundle import load
from medloom.errors import MedloomError
from medloom.workflows.answering import Item, answer
from medloom.workflows.child import end_with_the_parent


def main(text: str) -> NoReturn:
    """Answer line by line; a refusal is told to the parent, which says it."""
    end_with_the_parent()
    request = json.loads(text)
    folder = None if request["folder"] is None else Path(request["folder"])
    try:
        model = load(request["bundle"], threads=request["threads"], runtime=request["runtime"])
        for line in sys.stdin:
            items = [Item(**{**values, "files": tuple(values["files"])}) for values in json.loads(line)]
            _tell({"rows": [*answer(model, items, folder=folder, batch_size=len(items))]})
    except MedloomError as problem:
        _tell({"refused": problem.as_dict()})
        sys.exit(problem.exit_code)
    sys.exit(0)


def _tell(values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
