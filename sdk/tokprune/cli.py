"""`tokprune`: the verbs, and how errors leave them."""

import sys
from collections.abc import Callable
from typing import Annotated, TypeAlias

import tyro

from tokprune.commands.ask import Ask, run_ask
from tokprune.commands.bench import Bench, run_bench
from tokprune.commands.build import Build, run_build
from tokprune.commands.calibrate import Calibrate, run_calibrate
from tokprune.commands.chat import ChatCommand, run_chat
from tokprune.commands.doctor import Doctor, run_doctor
from tokprune.commands.inspect import Inspect, run_inspect
from tokprune.commands.serve import Serve, run_serve
from tokprune.commands.verify import Verify, run_verify
from tokprune.commands.watch import Watch, run_watch
from tokprune.errors import TokpruneError
from tokprune_runtimes.errors import EngineError

Command: TypeAlias = (
    Annotated[Ask, tyro.conf.subcommand("ask")]
    | Annotated[ChatCommand, tyro.conf.subcommand("chat")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Build, tyro.conf.subcommand("build")]
)


def main() -> None:
    """Run the command line. Exit 2 on a wrong request, 1 where a check failed."""
    command = tyro.cli(Command, prog="tokprune", config=(tyro.conf.OmitArgPrefixes,))
    sys.exit(guarded(lambda: _run(command)))


def guarded(run: Callable[[], int]) -> int:
    """Turn expected errors into one line on stderr."""
    try:
        return run()
    except TokpruneError as error:
        print(f"error [{error.code}]: {error}", file=sys.stderr)
        return 2
    except EngineError as error:  # what a builder says; of a run it is a TokpruneError
        print(f"error [engine]: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error [os]: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(command: Command) -> int:
    match command:
        case Ask():
            return run_ask(command)
        case ChatCommand():
            return run_chat(command)
        case Watch():
            return run_watch(command)
        case Bench():
            return run_bench(command)
        case Calibrate():
            return run_calibrate(command)
        case Serve():
            return run_serve(command)
        case Inspect():
            return run_inspect(command)
        case Verify():
            return run_verify(command)
        case Doctor():
            return run_doctor(command)
        case Build():
            return run_build(command)
