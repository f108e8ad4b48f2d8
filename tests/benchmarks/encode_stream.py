"""A stream of pictures in which something appears: what following it costs, and what it misses.

    python tests/benchmarks/encode_stream.py BUNDLE

writes docs/results/encode-stream.json and encode-stream.md. Drawn scenes with a camera's noise are
asked "is there a green star?" frame by frame; somewhere on the way one appears. The full look and
`Following` take turns, with the same budget. Questions of all groups about scenes in which nothing
changes show what remembered vision tokens lose in the long run.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any

import numpy as np
import tyro
from jaxtyping import UInt8
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track

import tokprune
from tokprune.scenes import noisy, suite
from tokprune.scenes.drawing import draw
from tokprune.scenes.scene import make_scene
from tokprune.types import Array

SIDE = 14  # vision tokens
FULL, FOLLOW = "full", "follow"


@dataclass(frozen=True)
class Options:
    """Ask about streams."""

    bundle: tyro.conf.Positional[Path]
    streams: int = 60
    frames: int = 24
    within: int = 8
    """Looks in which every part of the picture is seen."""
    budget: float = 0.25
    still: int = 300
    """Questions about scenes in which nothing changes."""
    looks: int = 33
    """Frames of each of these."""
    seed: int = 1
    """Of the scenes."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS


@dataclass(frozen=True)
class Seen:
    """One answer."""

    stream: int
    frame: int
    way: str
    there: bool  # what is asked for; of still scenes: whether the answer is right
    said: str
    encoded: float  # share of the vision tokens
    vision_ms: float
    ttft_ms: float  # without the wait


def streams(options: Options) -> Iterator[tuple[str, int, list[UInt8[Array, "h w 3"]]]]:
    """Yield what is asked, the frame from which on the answer is yes, and the frames."""
    rng = Random(options.seed)
    for number in range(options.streams):
        whole = make_scene(rng, SIDE, SIDE)
        thing = rng.choice(whole.things)
        same = [t for t in whole.things if (t.color, t.shape) == (thing.color, thing.shape)]
        before = replace(whole, things=tuple(t for t in whole.things if t not in same))
        appears = rng.randrange(options.frames // 4, options.frames * 3 // 4)
        noise = np.random.default_rng(number)
        drawn: dict[bool, UInt8[Array, "h w 3"]] = {False: draw(before), True: draw(whole)}
        frames = [noisy(drawn[frame >= appears], noise) for frame in range(options.frames)]
        yield f"is there a {thing.color} {thing.shape}?", appears, frames


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options)
    seen: list[Seen] = []
    with tokprune.load(options.bundle, backend="cpu", threads=1, vision_cache_bytes=0) as vlm:
        shown = track(streams(options), "streams", total=options.streams)
        for number, (question, appears, frames) in enumerate(shown):
            follow = tokprune.Following(options.within)
            for frame, picture in enumerate(frames):
                for way, encode in ((FULL, "full"), (FOLLOW, follow)):
                    answer = vlm.ask(picture, question, options.budget, encode=encode)
                    times = answer.timings_ms
                    seen.append(
                        Seen(
                            number,
                            frame,
                            way,
                            frame >= appears,
                            answer.text,
                            answer.encoded / answer.total,
                            round(times["vision"], 2),
                            round(sum(times.values()) - times["wait"] - times["decode"], 2),
                        )
                    )
        kept = list(still(vlm, options))
    told = {**machine(), "note": options.note, "options": _told(options)}
    result = {**told, **summary(seen), "still": lasting(kept)}
    path = options.output / "encode-stream.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    path.with_suffix(".md").write_text(text)
    Console().print(text, markup=False, soft_wrap=True)


def still(vlm: tokprune.VLM, options: Options) -> Iterator[Seen]:
    """Yield answers about scenes in which nothing changes but the camera's noise."""
    samples = suite("test", options.still, tokens=SIDE * SIDE, questions=1)
    for number, sample in enumerate(track(samples, "still scenes", total=options.still)):
        if len(sample.pictures) != 1:
            continue
        (scene,) = sample.pictures
        follow, noise = tokprune.Following(options.within), np.random.default_rng(number)
        for frame in range(options.looks):
            picture = noisy(scene, noise)
            ways = [(FOLLOW, follow), *[(FULL, "full")] * (frame % options.within == 0)]
            for way, encode in ways:
                answer = vlm.ask(picture, sample.question, options.budget, encode=encode)
                right = answer.text.strip().casefold() == sample.answer.casefold()
                share = answer.encoded / answer.total
                yield Seen(number, frame, way, right, answer.text, share, 0.0, 0.0)


def lasting(seen: Sequence[Seen]) -> dict[str, Any]:
    """Return the share of right answers by the number of looks before."""
    frames = sorted({each.frame for each in seen if each.way == FULL})
    right = {
        way: [mean(s.there for s in seen if (s.way, s.frame) == (way, frame)) for frame in frames]
        for way in (FULL, FOLLOW)
    }
    later = [each.encoded for each in seen if each.way == FOLLOW and each.frame > 0]
    count = len({each.stream for each in seen})
    return {"questions": count, "frames": frames, "right": right, "encoded": mean(later)}


def _told(options: Options) -> dict[str, Any]:
    """Return what another run must be given; folders are each machine's own."""
    given = asdict(options) | {"bundle": options.bundle.name}
    return {name: value for name, value in given.items() if name not in ("output", "note")}


def summary(seen: Sequence[Seen]) -> dict[str, Any]:
    """Return what each way got right, when it noticed, and what it cost."""
    ways: dict[str, Any] = {}
    for way in (FULL, FOLLOW):
        mine = [each for each in seen if each.way == way]
        later = [each for each in mine if each.frame > 0]
        delays = list(_delays(mine))
        noticed = [delay for delay in delays if delay is not None]
        ways[way] = {
            "right": mean(_right(each) for each in mine),
            "right_before": mean(_right(each) for each in mine if not each.there),
            "right_after": mean(_right(each) for each in mine if each.there),
            "noticed": len(noticed),
            "of": len(delays),
            "frames_until_noticed": mean(noticed) if noticed else None,
            "most_frames": max(noticed, default=None),
            "encoded": mean(each.encoded for each in later),
            "vision_ms": median(each.vision_ms for each in later),
            "ttft_ms": median(each.ttft_ms for each in later),
            "ttft_mean_ms": mean(each.ttft_ms for each in mine),
        }
    faster = ways[FULL]["ttft_mean_ms"] / ways[FOLLOW]["ttft_mean_ms"]
    return {"ways": ways, "faster": faster}


def _right(each: Seen) -> bool:
    return each.said.strip().casefold() == ("yes" if each.there else "no")


def _delays(mine: Sequence[Seen]) -> Iterator[int | None]:
    """Yield for each stream how many frames after the thing appeared "yes" was said first."""
    for stream in sorted({each.stream for each in mine}):
        after = [each for each in mine if each.stream == stream and each.there]
        said = [each.frame for each in after if _right(each)]
        yield said[0] - after[0].frame if said else None


def markdown(result: dict[str, Any]) -> str:
    """Return the table."""
    options = result["options"]
    lines = [
        "# Following a stream",
        "",
        f"{options['streams']} streams of {options['frames']} frames of {SIDE * SIDE} vision "
        "tokens, drawn scenes with a camera's noise, in which what is asked for appears; "
        f"`Following(within={options['within']})` and the full look with a budget of "
        f"{options['budget']:g}, taking turns. Demo Qwen2-VL, one thread; {result['processor']}, "
        f"{result['date']}. {result['note']}",
        "",
        "| | full | follow |",
        "| --- | ---: | ---: |",
    ]
    full, follow = result["ways"][FULL], result["ways"][FOLLOW]
    rows = (
        ("right answers", "right", "{:.1%}"),
        ("before it appears", "right_before", "{:.1%}"),
        ("after", "right_after", "{:.1%}"),
        ("streams in which it was noticed", "noticed", "{}"),
        ("frames until then, mean", "frames_until_noticed", "{:.2f}"),
        ("at most", "most_frames", "{}"),
        ("vision tokens encoded, after the first frame", "encoded", "{:.0%}"),
        ("vision encoder, ms, median", "vision_ms", "{:.1f}"),
        ("first token, ms, median", "ttft_ms", "{:.1f}"),
        ("first token, ms, mean of all frames", "ttft_mean_ms", "{:.1f}"),
    )
    for name, key, form in rows:
        lines.append(f"| {name} | {form.format(full[key])} | {form.format(follow[key])} |")
    lines += ["", f"In the mean the first token comes {result['faster']:.2f} times as soon."]
    lasts = result["still"]
    lines += [
        "",
        "## Where nothing changes",
        "",
        f"{lasts['questions']} questions of all groups but that of two pictures, test split: right "
        f"answers after so many looks, {lasts['encoded']:.0%} of the vision tokens encoded in each "
        "but the first.",
        "",
        "| looks before | " + " | ".join(map(str, lasts["frames"])) + " |",
        "| --- |" + " ---: |" * len(lasts["frames"]),
    ]
    for way, shares in lasts["right"].items():
        lines.append(f"| {way} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
