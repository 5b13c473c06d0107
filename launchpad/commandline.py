"""What Invoke's command line lacks: a positional argument that may be left out when a flag is given."""

from __future__ import annotations

from typing import Any

from invoke.parser import Argument
from invoke.tasks import Task


class Unless(Argument):
    """A positional argument that is required unless a flag is given; it is then the empty text."""

    flag: Argument

    @property
    def value(self) -> Any:
        given = super().value
        return "" if given is None and self.flag.value else given

    @value.setter
    def value(self, given: Any) -> None:
        self.set_value(given, cast=False)


class ListOrName(Task):
    """A task whose first positional argument may be left out when `--list` is given."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        arguments = super().get_arguments(ignore_unknown_help)
        flag = next(argument for argument in arguments if argument.attr_name == "list_")
        first = next(argument for argument in arguments if argument.positional)
        wanted = Unless(names=first.names, kind=first.kind, help=first.help, positional=True)
        wanted.flag = flag
        return [wanted if argument is first else argument for argument in arguments]
