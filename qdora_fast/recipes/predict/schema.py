"""Which answers are valid JSON for a JSON Schema, by the library `jsonschema` (extra `schema`).

An answer counts as it is: what stands around the JSON, a code fence too, makes it invalid, since a program that parses
answers would fail on it. Schemas that a schema refers to must be in the file; nothing is fetched.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from qdora_fast.system.errors import ConfigError, first_line
from qdora_fast.system.install import how_to_install
from qdora_fast.system.json_files import NotJson, parse_json, read_object

LONGEST = 300


class AnswerSchema:
    """A schema that answers are held against.

    Raises:
        ConfigError: the library is missing, or the file holds no valid schema.
    """

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("jsonschema") is None:
            raise ConfigError(f"--schema needs jsonschema; install with\n  {how_to_install('schema')}")
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import validator_for
        from referencing import Registry

        self.path = path
        self.content = read_object(path, error=ConfigError, fix="correct the file that --schema names")
        kind = validator_for(self.content, default=Draft202012Validator)
        try:
            kind.check_schema(self.content)
        except SchemaError as error:
            raise ConfigError(
                f"{path}: not a valid JSON Schema ({error.json_path}: {error.message[:LONGEST]})"
            ) from None
        self._validator: Any = kind(self.content, registry=Registry())

    def problem(self, answer: str | None) -> str:
        """What is wrong with an answer; "" where it is valid.

        Raises:
            ConfigError: the schema refers to one that is not in its file.
        """
        from referencing.exceptions import Unresolvable

        try:
            value = parse_json(answer or "")
        except NotJson as error:
            return f"no JSON: {error}"
        try:
            wrong = next(iter(self._validator.iter_errors(value)), None)
        except (Unresolvable, RecursionError) as error:
            raise ConfigError(
                f"{self.path}: a reference in it cannot be followed ({first_line(error)}); nothing outside of the file "
                "is read"
            ) from None
        return "" if wrong is None else f"{wrong.json_path}: {wrong.message}"[:LONGEST]
