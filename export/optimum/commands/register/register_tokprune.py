"""`optimum-cli export tokprune`: `tokprune-export` on optimum's command line.

optimum finds this file by where it lies: `optimum.commands.register` is a namespace that packages
share, so no folder on the way here may have an `__init__.py`. It is imported whenever `optimum-cli`
starts, and therefore imports nothing heavy. What can be told is read from `ExportOptions`, and
parsed by what parses it for `tokprune-export`.
"""

import ast
import inspect
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from tokprune_export.cli import run_export
from tokprune_export.exits import guarded
from tokprune_export.options import ExportOptions

NAME = "optimum-cli export tokprune"
REPEATED = get_args(tyro.conf.UseAppendAction[int])[1]  # marks `--sm sm87 --sm sm89`


class TokpruneExportCommand(BaseOptimumCLICommand):
    """Export a vision-language model as a tokprune bundle."""

    COMMAND = CommandInfo(
        name="tokprune", help="Export a vision-language model to prune its tokens."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Offer `-m MODEL OUTPUT`, as optimum's own exporters do, and every other option."""
        offer(parser, ExportOptions)

    def run(self) -> None:
        """Export, and end with the statuses of `tokprune-export`."""
        assert self.args is not None  # optimum makes a second command, with what was parsed
        options = tyro.cli(ExportOptions, prog=NAME, args=arguments(ExportOptions, self.args))
        sys.exit(guarded(NAME, lambda: run_export(options)))


def offer(parser: ArgumentParser, options: type) -> None:
    """Add what a dataclass can be told."""
    told, hints = explanations(options), get_type_hints(options)
    parser.description = inspect.getdoc(options)
    parser.add_argument("-m", "--model", required=True, metavar="MODEL", help=told["model"])
    parser.add_argument("output", metavar="OUTPUT", help=told["output"])
    for field in fields(options):
        if field.name in ("model", "output"):
            continue
        shown = told[field.name]
        if isinstance(field.default, str | int | float) and "default" not in shown:
            shown += f" (default: {field.default})"
        parser.add_argument(flag(field.name), help=shown, **accepts(hints[field.name]))


def accepts(hint: Any) -> dict[str, Any]:
    """Return how argparse takes an option of this type. Its words stay text: tyro converts them."""
    if hint is bool:
        return {"action": BooleanOptionalAction, "default": None}
    kinds = [hint, *get_args(hint)]  # Literal[...] | None is a Literal
    choices = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    many = {"nargs": "+", "action": "extend"} if get_origin(hint) in (tuple, list) else {}
    return {**many, **({"choices": choices} if choices else {})}


def arguments(options: type, given: Namespace) -> list[str]:
    """Return the words that tell tyro the same."""
    hints = get_type_hints(options, include_extras=True)
    words = [given.model, given.output]
    for field in fields(options):
        value = getattr(given, field.name)
        if field.name in ("model", "output") or value is None:
            continue
        if isinstance(value, bool):
            words.append(flag(field.name if value else f"no_{field.name}"))
        elif isinstance(value, list) and REPEATED not in get_args(hints[field.name]):
            words += [flag(field.name), *value]
        else:
            for word in value if isinstance(value, list) else [value]:
                words += [flag(field.name), word]
    return words


def flag(name: str) -> str:
    """Return the option of a field."""
    return "--" + name.replace("_", "-")


def explanations(options: type) -> dict[str, str]:
    """Return the sentence below each field of a dataclass, escaped for argparse."""
    (described,) = ast.parse(inspect.getsource(options)).body
    assert isinstance(described, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(described.body, described.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = inspect.cleandoc(str(below.value.value)).replace("%", "%%")
    return found


REGISTER_COMMANDS = [(TokpruneExportCommand, ExportCommand)]
