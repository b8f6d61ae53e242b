"""How a command ends: every mistake of the user with one message and status 2, what failed otherwise with 1."""

import sys

import click
import typer

from fedhess.errors import FederationError, UsageError
from fedhess.runs import StorageError


def run_command(cli: typer.Typer) -> int:
    """Run a command on the arguments of this process.

    Args:
        cli: A Typer application with one command.

    Returns:
        The exit status: 0 if results were written, 2 for a mistake of the user, 130 after Ctrl-C, else 1.
    """
    try:
        return int(cli(standalone_mode=False) or 0)
    except UsageError as error:
        sys.stderr.write(f"fedhess: {error}\n")
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (FederationError, StorageError) as error:
        sys.stderr.write(f"fedhess: {error}\n")
        return 1
