"""Everything that needs an NVIDIA GPU, in one run, into one file.

    make gpu
    make gpu WHEELS=FOLDER                     # offline: needs a Python, and wheels for it
    python tests/gpu/run.py --wheels FOLDER    # the same

program.py says what is run. This file has the standard library alone at its top, so that a bare
Python can begin with it and install what the rest needs.
"""

import sys
from pathlib import Path

from offline import request_of, run_again


def main() -> None:
    """Run every part, after setting up an environment where that was asked for."""
    request = request_of(sys.argv[1:])
    if request is not None:
        raise SystemExit(run_again(request, Path(__file__)))
    try:
        import program
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"{error}: `make gpu` installs it; offline, the folder of wheels lacks it"
        ) from None
    program.main()


if __name__ == "__main__":
    main()
