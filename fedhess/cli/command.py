"""How a command ends: every mistake of the user with one message and status 2, what failed otherwise with 1."""

import io
import sys

import click
import typer
from typer.core import TyperCommand

from fedhess.base.errors import FederationError, StorageError, UsageError


class Command(TyperCommand):
    """A command whose help shows ``[default: 7]`` as it is.

    Typer 0.20 puts a backslash before such a bracket, for Rich, whenever Rich is installed, even where it does not
    print through it.
    """

    def get_help(self, ctx: click.Context) -> str:
        """Return the help, without the backslashes."""
        return super().get_help(ctx).replace("\\[", "[")


def run_command(cli: typer.Typer | click.Command, name: str = "fedhess") -> int:
    """Run a command on the arguments of this process.

    Args:
        cli: A Typer application, or a command.
        name: What its messages begin with.

    Returns:
        The exit status: 0 if results were written, 2 for a mistake of the user, 130 after Ctrl-C, else 1.
    """
    add_version = click.version_option(package_name="fedhess", prog_name="fedhess", message="%(prog)s %(version)s")
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8; stderr escapes what is not anyway
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command = add_version(typer.main.get_command(cli) if isinstance(cli, typer.Typer) else cli)
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
