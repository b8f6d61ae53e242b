"""How a command ends: with one message and status 2 after a user's mistake, with status 1 after another failure."""

import io
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import typer
from typer.core import TyperCommand

from fedhess.base.errors import FederationError, StorageError, UsageError
from fedhess.settings.run_config import GROUPS


class Command(TyperCommand):
    """A command whose help lists its options in groups, those of :data:`GROUPS` in their order."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                kind = "Arguments" if isinstance(parameter, click.Argument) else "Options"
                group = getattr(parameter, "rich_help_panel", None) or kind
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    # Typer 0.20 puts a backslash before a bracket, for Rich, even where Rich does not print it.
                    formatter.write_dl([(name, text.replace("\\[", "[")) for name, text in records])


def run_command(cli: typer.Typer | click.Command, name: str = "fedhess") -> int:
    """Run a command on the arguments of this process.

    Returns:
        The exit status: 0 if results were written, 2 for a mistake of the user, 130 after Ctrl-C, else 1.
    """
    version = click.version_option(package_name="fedhess", prog_name="fedhess", message="%(prog)s %(version)s")
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may not be UTF-8; stderr escapes them already
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command = typer.main.get_command(cli) if isinstance(cli, typer.Typer) else cli
        if not any(parameter.name == "version" for parameter in command.params):
            version(command)
        return int(command.main(standalone_mode=False, help_option_names=["-h", "--help"], max_content_width=120) or 0)
    except UsageError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (FederationError, StorageError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1


def print_results(summary: Mapping[str, Any], table: str, files: Iterable[Path], *, quiet: bool, as_json: bool) -> None:
    """Print a job's summary as JSON, or its table and, unless quiet, the files that were written."""
    if as_json:
        click.echo(json.dumps(summary, indent=2, allow_nan=False))
        return
    click.echo(table)
    if not quiet:
        click.echo(f"\nwritten: {', '.join(map(str, files))}")
