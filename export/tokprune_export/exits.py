"""How commands end: with a status, and one line on stderr for what was refused."""

import sys
from collections.abc import Callable

from tokprune.errors import TokpruneError
from tokprune_export.errors import ParityFailed

REFUSED, OUT_OF_TOLERANCE, INTERRUPTED = 2, 1, 130


def guarded(name: str, command: Callable[[], None]) -> int:
    """Run a command and return its exit status; what was refused is one line on stderr."""
    try:
        command()
    except ParityFailed as error:
        print(f"{name}: {error}", file=sys.stderr)
        return OUT_OF_TOLERANCE
    except (TokpruneError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except ModuleNotFoundError as error:
        hint = "pip install 'tokprune[export]'; a torchvision that does not fit torch breaks it too"
        print(f"{name}: {' '.join(str(error).split())} ({hint})", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
