"""Run as a program: import tokprune where PyAV is missing, and ask for a video."""

import json
import sys


class Blocked:
    """Finds nothing below `av`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "av":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocked())  # pyright: ignore[reportArgumentType]

import tokprune  # noqa: E402
import tokprune.cli  # noqa: E402

loaded = [name for name in sys.modules if name == "av" or name.startswith("av.")]
try:
    tokprune.load_video("film.mp4")
except tokprune.TokpruneError as error:
    result = {"loaded": loaded, "error": error.code, "message": str(error)}
    sys.stdout.write(json.dumps(result) + "\n")
