"""The command line: ``python -m sensevoice_service <command>``, run from the project's root."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config import ConfigError, load_settings
from sensevoice_service import __version__, model_store
from sensevoice_service.cli import info, transcribe
from sensevoice_service.cli.files import UsageError
from sensevoice_service.hub import HUB_NAMES
from sensevoice_service.types import ModelError

EXIT_USAGE = 2  # argparse's own
EXIT_NO_MODEL = 3
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status: 0, 2 for wrong usage, 3 where there is no model,
    130 when interrupted, and what the command adds to these."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ModelError as error:
        print(error, file=sys.stderr)
        return EXIT_NO_MODEL
    except (ConfigError, UsageError) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    """Every command is a subparser whose ``run`` takes the parsed options and gives a status."""
    parser = argparse.ArgumentParser(
        prog="python -m sensevoice_service",
        description="Speech to text, from the folder of the project.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    transcribe.add_command(commands)
    _add_serve(commands)
    _add_download(commands)
    info.add_command(commands)
    return parser


def _add_download(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("download", help="fetch a model and verify it")
    command.add_argument("--hub", choices=sorted(HUB_NAMES), help="default: the setting HUB")
    command.add_argument("--model", metavar="ID", help="hub id (default: SenseVoiceSmall)")
    command.add_argument("--to", metavar="DIR", type=Path, help="folder (default: the hub's cache)")
    command.set_defaults(run=_download)


def _download(options: argparse.Namespace) -> int:
    folder = model_store.download(
        options.hub or load_settings().HUB,
        model_id=options.model,
        to=options.to,
        report=lambda message: print(message, file=sys.stderr),
    )
    print(folder.path)
    return 0


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("serve", help="serve the API")
    command.set_defaults(run=_serve)


def _serve(_options: argparse.Namespace) -> int:
    import api

    return api.main()
