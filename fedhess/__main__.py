"""Every command under one name: ``fedhess simulate``, ``sweep``, ``report``, ``export`` and the others."""

import sys
from importlib import import_module

import click
import typer

from fedhess.cli.command import run_command

COMMANDS = {
    "simulate": ("fedhess.simulate", "Train on some domains, evaluate on another; repeat for every target."),
    "sweep": ("fedhess.sweep", "Search each method's settings, and compare the methods at their best."),
    "data": ("fedhess.data", "Which data is here, what is missing or broken, how to get it."),
    "report": ("fedhess.report", "Make the tables of a recorded job again, or compare selectors."),
    "diagnose": ("fedhess.diagnose", "Measure what each method of a finished job aligned."),
    "export": ("fedhess.export", "Write a finished run's model to a folder, with its classes and a card."),
    "predict": ("fedhess.predict", "Classify images with an exported model."),
    "deploy": ("fedhess.deploy.__main__", "Run on real machines: keys, SuperLink, SuperNodes, runs."),
}


class Commands(click.Group):
    """The commands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command with its name and short help only, which is all that the group's help needs."""
        del ctx
        return click.Command(cmd_name, short_help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the command that is called."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            command = typer.main.get_command(import_module(COMMANDS[str(name)][0]).cli)
        return name, command, rest


cli = Commands(name="fedhess", help="Federated domain generalization on Flower.", no_args_is_help=True)


def main() -> None:
    """Run the command; a user's mistake ends with one message and status 2."""
    sys.exit(run_command(cli))


if __name__ == "__main__":
    main()
