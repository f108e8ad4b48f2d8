"""`make gpu` without a network: an environment made of a folder of wheels, from any Python."""

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from offline import Request, request_of, wheel_names

RUN = Path(__file__).parents[1] / "gpu" / "run.py"


def a_wheel(folder: Path, name: str) -> Path:
    """Write a wheel of one module, which nothing else on this machine has."""
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "VALUE = 42\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},{_digest(text)},{len(text)}\n" for file, text in files.items())
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def ran(python: Path | str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `make gpu`'s program where neither variables nor a network help it."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [python, RUN, *words]
    return subprocess.run(
        command, env={**kept, **nowhere}, capture_output=True, text=True, check=False
    )


def test_a_bare_python_gets_an_environment_of_the_wheels(tmp_path: Path) -> None:
    bare, work = tmp_path / "bare", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    a_wheel(tmp_path / "wheels", "made_by_hand")
    done = ran(bare / "bin/python", "--wheels", tmp_path / "wheels", "--work", work)
    # The environment was made, and the run began there: what it then lacks is no wheel in this
    # folder, and is named.
    assert done.returncode == 1, done.stderr
    assert "Successfully installed made-by-hand-1.0" in done.stdout
    assert re.search(r"No module named '\w+': .*the folder of wheels lacks it", done.stderr)
    python = work / "venv/bin/python"
    told = [python, "-c", "import made_by_hand; print(made_by_hand.VALUE)"]
    assert subprocess.run(told, capture_output=True, text=True, check=True).stdout == "42\n"
    settings = (work / "venv/pyvenv.cfg").read_text(encoding="utf-8")
    assert "include-system-site-packages = true" in settings  # JetPack's TensorRT is there


def test_an_environment_that_begins_it_is_seen_behind_the_new_one(tmp_path: Path) -> None:
    a_wheel(tmp_path / "wheels", "made_by_hand")
    words = ("--wheels", tmp_path / "wheels", "--work", tmp_path / "work", "--slice", "huge")
    done = ran(sys.executable, *words)
    # Everything that the program imports was found, and it got the words that were not for pip.
    assert "Unknown slice 'huge'; known: 7B, 2B, tiny" in done.stderr, done.stderr
    assert done.returncode == 1


def test_a_folder_without_wheels_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = ran(sys.executable, f"--wheels={tmp_path}", f"--work={tmp_path / 'work'}")
    assert f"There are no wheels in {tmp_path}" in done.stderr
    assert not (tmp_path / "work").exists()


def test_what_is_not_for_pip_is_handed_on() -> None:
    words = ("--engines", "cuda", "--wheels", "w", "--note", "idle", "--work=x")
    rest = ("--engines", "cuda", "--note", "idle", "--work", "x")
    assert request_of(words) == Request(Path("w"), Path("x"), rest)
    assert request_of(("--engines", "cuda")) is None


def test_the_checkout_is_run_and_one_onnx_runtime_is_installed(tmp_path: Path) -> None:
    for name in ("tokprune", "onnxruntime", "onnxruntime_gpu", "NumPy"):
        (tmp_path / f"{name}-1.0-py3-none-any.whl").touch()
    assert wheel_names(tmp_path) == ["numpy", "onnxruntime-gpu"]
    (tmp_path / "onnxruntime_gpu-1.0-py3-none-any.whl").unlink()
    assert wheel_names(tmp_path) == ["numpy", "onnxruntime"]
