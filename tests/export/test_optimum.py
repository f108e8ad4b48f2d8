"""`optimum-cli export tokprune`, as optimum finds it in the installed package."""

import json
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro

from tokprune.bundle import open_bundle
from tokprune_export.errors import ParityFailed
from tokprune_export.options import ExportOptions

CLI = shutil.which("optimum-cli", path=str(Path(sys.executable).parent))
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(CLI is None, reason="optimum is not installed (extra optimum)"),
]


def optimum(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [str(CLI), "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_optimum_lists_the_command() -> None:
    shown = optimum("--help")
    assert shown.returncode == 0, shown.stderr
    assert "Export a vision-language model to prune its tokens." in shown.stdout


def test_the_help_has_every_option_of_tokprune_export() -> None:
    shown = optimum("tokprune", "--help")
    assert shown.returncode == 0, shown.stderr
    words = " ".join(shown.stdout.split())
    assert "-m MODEL" in words
    assert words.index("positional arguments: OUTPUT") > 0
    for field in fields(ExportOptions):
        if field.name not in ("model", "output"):
            assert f"--{field.name.replace('_', '-')}" in words
    assert "Tolerance of the parity gate: |a - b|" in words
    assert "18 is what every engine reads. (default: 18)" in words


def test_it_exports_what_tokprune_export_does(demo_checkpoint: Path, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    options = ("--num-decoder-layers", 1, "--max-kv-len", 512, "--opset", 19)
    done = optimum("tokprune", "-m", demo_checkpoint, place, *options)
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(place).manifest
    assert (manifest.family, manifest.llm.layers, manifest.limits.max_kv_len) == (
        "qwen2_vl",
        1,
        512,
    )
    assert manifest.graphs.vision_encoder.opset == 19
    assert json.loads((place / "reports" / "parity.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "/nowhere", "bundle"), "There is no folder /nowhere"),
        (("-m", "/nowhere", "bundle", "--opset", "new"), "invalid literal for int"),
        (("-m", "/nowhere", "bundle", "--device", "tpu"), "invalid choice: 'tpu'"),
        (("bundle",), "required: -m/--model"),
    ],
)
def test_what_is_refused_is_status_2_and_one_reason(
    arguments: tuple[str, ...], message: str
) -> None:
    done = optimum("tokprune", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_out_of_tolerance_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimum.commands.register import register_tokprune as plugin

    asked: list[ExportOptions] = []

    def failed(options: ExportOptions) -> None:
        asked.append(options)
        raise ParityFailed("1 of 2 comparisons are out of tolerance")

    monkeypatch.setattr(plugin, "run_export", failed)
    parser = ArgumentParser()
    plugin.TokpruneExportCommand.parse_args(parser)
    given = parser.parse_args(["-m", "here", "there", "--scorer", "s", "--max-kv-len", "7"])
    command = plugin.TokpruneExportCommand(None, given, from_defaults_factory=True, parser=parser)
    with pytest.raises(SystemExit) as ended:
        command.run()
    assert ended.value.code == 1
    message = "optimum-cli export tokprune: 1 of 2 comparisons are out of tolerance\n"
    assert capsys.readouterr().err == message
    assert asked == [ExportOptions("here", Path("there"), scorer=Path("s"), max_kv_len=7)]


@dataclass(frozen=True)
class Every:
    """Every type that options of ours have."""

    model: tyro.conf.Positional[str]
    """A name."""
    output: tyro.conf.Positional[Path]
    """A place."""
    kind: Literal["a", "b"] | None = None
    """A word of 100 %."""
    some: tuple[str, ...] = ()
    """Words in a row."""
    repeated: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Words one by one."""
    share: float = 0.5
    """A number."""
    on: bool = False
    """A switch."""
    off: bool = True
    """Another."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--kind b --share 0.25", {"kind": "b", "share": 0.25}),
        ("--some x y", {"some": ("x", "y")}),
        ("--repeated x --repeated y", {"repeated": ("x", "y")}),
        ("--on --no-off", {"on": True, "off": False}),
        ("--no-on --off", {}),
    ],
)
def test_options_of_every_type_arrive(words: str, expected: dict[str, Any]) -> None:
    from optimum.commands.register.register_tokprune import arguments, offer

    parser = ArgumentParser()
    offer(parser, Every)
    assert "A word of 100 %." in parser.format_help()
    given = parser.parse_args(["-m", "name", *words.split(), "--", "place"])
    told = tyro.cli(Every, args=arguments(Every, given))
    assert told == Every("name", Path("place"), **expected)
