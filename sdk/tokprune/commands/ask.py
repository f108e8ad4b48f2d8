"""`tokprune ask`: one question, one answer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import tyro
from PIL import Image as Pillow

from tokprune.backends import Asked
from tokprune.budgets import parse_budget
from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write
from tokprune.loading import load
from tokprune.looking import way_of
from tokprune.overlay import overlay
from tokprune.pictures import load_picture
from tokprune.selectors import method_of
from tokprune.tracing import write_trace
from tokprune.types import Answer, Clip, Medium
from tokprune.video import load_video


@dataclass(frozen=True)
class Ask:
    """Ask a question about pictures and videos."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    question: str
    """What to ask."""
    image: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A picture; repeat for several, in order."""
    video: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A video; repeat for several. Videos come after the pictures."""
    fps: float | None = None
    """Take a frame of each video every 1/fps s. If neither this nor --num-frames is given: two a
    second, at most 32."""
    num_frames: int | None = None
    """Take this many frames of each video, evenly spread."""
    budget: str = "0.5"
    """Vision tokens that may enter the LLM: a share (0.5), a count (128), what holds a share of the
    predicted relevance (mass:0.9), what a time to the first token allows (ttft:300ms), or the
    fewer of both (auto:300ms). Times need `tokprune calibrate`."""
    selector: str | None = None
    """How tokens are chosen; the bundle's default if not given. One of relevance-spread,
    relevance-coverage, relevance-mmr, scope-relevance, relevance; attention-spread,
    attention-coverage, attention; cdpruner, dart, divprune, apet, apet-merge; spread, pool, random,
    uniform. Where the bundle has saliency: scope, vtc-cls, flashvlm, recoverable, and for a
    picture with crops globalcom2. Of videos: evs, vidcom2, ts-llava."""
    encode: str = "full"
    """What the vision encoder is shown: everything (full), a part and then what the question points
    to (lazy, lazy:2, lazy:0.9, coarse, coarse:2), nothing twice (repeats, repeats:0.02); auto: lazy
    for crops."""
    max_new_tokens: int = 128
    """Bound of the answer's length."""
    system: str | None = None
    """A system message."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens that holds this probability."""
    seed: int = 0
    """Equal seeds draw equal answers."""
    choice: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A possible answer; repeat for all. The likeliest is given, with probabilities."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The answer ends before this text; repeat for several."""
    deadline_s: float | None = None
    """Seconds after which the answer ends as it is then."""
    overlay: Path | None = None
    """Write a picture of the kept patches here (PNG); several are numbered. Of a video, a sheet of
    its frames; where the model takes frames in pairs (Qwen), the first of each pair."""
    trace: Path | None = None
    """Write when each stage ran here, for https://ui.perfetto.dev or chrome://tracing (JSON)."""
    json: bool = False
    """Print one JSON object instead of text."""
    backend: Asked = "auto"
    """What runs the graphs; auto takes the fastest that can."""
    threads: int | None = None
    """Threads of each graph."""


def run_ask(command: Ask) -> int:
    """Run `tokprune ask`."""
    budget = parse_budget(command.budget)
    if command.selector is not None:
        method_of(command.selector)
    way_of(command.encode)
    if command.overlay is not None and command.overlay.suffix.lower() != ".png":
        raise RequestInvalid(
            f"--overlay writes PNG: give a name ending in .png, got {command.overlay}"
        )
    media = _media(command)
    with load(command.bundle, backend=command.backend, threads=command.threads) as vlm:
        stream = vlm.stream(
            media,
            command.question,
            budget,
            command.selector,
            system=command.system,
            max_new_tokens=command.max_new_tokens,
            temperature=command.temperature,
            top_p=command.top_p,
            seed=command.seed,
            choices=command.choice or None,
            stop=command.stop,
            deadline_s=command.deadline_s,
            encode=command.encode,
        )
        for piece in stream:
            if not command.json:
                print(piece, end="", flush=True)
        answer = stream.answer
    shown = json.dumps(as_json(answer, media)) if command.json else f"\n{summary(answer)}"
    print(shown)
    if command.overlay is not None:
        _write_overlays(command.overlay, media, answer)
    if command.trace is not None:
        write_trace(command.trace, [answer])
    return 0


def _media(command: Ask) -> list[Medium]:
    """Read pictures, then videos."""
    if not command.image and not command.video:
        raise RequestInvalid(
            "ask needs a picture or a video: give --image FILE or --video FILE, or both"
        )
    if not command.video and (command.fps is not None or command.num_frames is not None):
        raise RequestInvalid("--fps and --num-frames are about videos: give --video FILE")
    pictures = [load_picture(path) for path in command.image]
    videos = [
        load_video(path, fps=command.fps, num_frames=command.num_frames) for path in command.video
    ]
    return [*pictures, *videos]


def _write_overlays(target: Path, media: Sequence[Medium], answer: Answer) -> None:
    for index, medium in enumerate(media):
        name = f"{target.stem}-{index}.png" if len(media) > 1 else target.name
        data = BytesIO()
        Pillow.fromarray(overlay(medium, answer, picture=index)).save(data, "PNG")
        atomic_write(target.with_name(name), data.getvalue())


def as_json(answer: Answer, media: Sequence[Medium]) -> dict[str, Any]:
    """Return the answer as `--json` prints it. Keys are only ever added."""
    selection = answer.selection
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "kept": answer.kept,
        "total": answer.total,
        "need": selection.need,
        "cap": selection.cap,
        "reason": selection.reason,
        "keep": selection.keep.tolist(),
        "grid": [[region.rows, region.columns] for region in answer.regions],
        "scores": None if selection.scores is None else selection.scores.tolist(),
        "selector": answer.selector,
        "timings_ms": dict(answer.timings_ms),
        "ttft_ms": answer.ttft_ms,
        "prompt_tokens": answer.prompt_tokens,
        "reused": answer.reused,
        "encoder_runs": answer.encoder_runs,
        "encoder_hits": answer.encoder_hits,
        "choice": answer.choice,
        "probabilities": None if answer.probabilities is None else dict(answer.probabilities),
        "choice_mass": answer.choice_mass,
        "regions": [[region.picture, region.frame, region.tile] for region in answer.regions],
        "videos": [
            {"picture": index, "frames": len(medium.frames), "fps": medium.fps}
            for index, medium in enumerate(media)
            if isinstance(medium, Clip)
        ],
        "frame_age_s": answer.frame_age_s,
        "encode": answer.encode,
        "encoded": answer.encoded,
        "encode_reason": answer.encode_reason,
    }


def summary(answer: Answer) -> str:
    """Return kept tokens and timings as one line."""
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in answer.timings_ms.items())
    parts = [
        f"kept {answer.kept} of {answer.total} vision tokens by {answer.selector} "
        f"({answer.selection.reason}){_encoded_how(answer)}",
        f"first token after {answer.ttft_ms:.1f} ms",
        f"ms: {stages}",
    ]
    if answer.probabilities is not None:
        chances = answer.probabilities.items()
        parts.insert(0, ", ".join(f"{text} {chance:.1%}" for text, chance in chances))
    if answer.finish_reason != "stop":
        parts.insert(0, f"ended by {answer.finish_reason}")
    return f"[{'; '.join(parts)}]"


def encoded(answer: Answer) -> str:
    """Return how many vision tokens were encoded, "" where that is simply all of them."""
    if answer.encode == "full" and answer.encoded == answer.total:
        return ""
    return f", {answer.encoded} encoded"


def _encoded_how(answer: Answer) -> str:
    told = encoded(answer)
    if not told or answer.encode == "full":
        return told
    return f"{told} by {answer.encode} ({answer.encode_reason})"
