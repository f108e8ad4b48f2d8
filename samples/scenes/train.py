"""Train a demo VLM on drawn scenes, in one command.

    python samples/scenes/train.py OUTPUT --family vila --language CHECKPOINT

Every step's data is a pure function of (seed, step), so a run that was stopped goes on where its
last checkpoint stands, by the same command. OUTPUT gets log.jsonl, state.safetensors, hf/ (a
checkpoint as published ones are) and curve.png. How the shipped checkpoints came about stands in
their cards: each was changed on the way. The defaults have not been run from nothing to the end
since, nor has `gpu`, a larger network. A step takes about a second on one core. glibc gives
memory back after every step, which costs a fifth of the time: MALLOC_TRIM_THRESHOLD_=8589934592
MALLOC_MMAP_THRESHOLD_=8589934592 in the environment stop that.
"""

import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, Queue
from random import Random
from statistics import fmean
from threading import Event
from typing import Any, Literal

import torch
import tyro
from batch import Batch
from checkpoint import load_state, save_state
from curve import plot_curve
from demos import DEMOS, Demo
from lines import Row
from losses import Heads, Learner, batch_loss, exact_match
from mixture import make_batch, make_development, with_layouts
from network import take_over, whitened
from rows import Writer
from torch import nn

from tokprune.loading import open_tokenizer
from tokprune.scenes import make_scene
from tokprune_export.checkpoint import open_checkpoint

REPORT_STEPS = 50
HEADS_RATE = 5e-3  # while they learn alone


@dataclass(frozen=True)
class Options:
    """Train a demo VLM."""

    output: tyro.conf.Positional[Path]
    """Folder of the run; an unfinished run in it goes on."""
    family: Literal["qwen2_vl", "llava_onevision", "vila"] = "qwen2_vl"
    """Which of the demo VLMs."""
    preset: Literal["cpu", "gpu"] = "cpu"
    """Size of the network: cpu (1.8 M parameters) or gpu (larger; on CUDA, larger batches)."""
    steps: int = 9000
    """Steps that train everything."""
    vision_steps: int = 3500
    """Steps before these that train the vision encoder alone."""
    vision_again: tuple[int, int] = (0, 0)
    """From which step on, and for how many more steps, the vision encoder learns alone again."""
    lr: float = 2e-3
    """Highest learning rate."""
    constant: float = 0.2
    """Share of the steps before the learning rate falls."""
    dropout_from: float = 0.55
    """Share of the steps before vision tokens are dropped."""
    plain: bool = False
    """Never drop vision tokens: a model to compare with."""
    seed: int = 0
    """Of weights and data."""
    init: Path | None = None
    """Start from the weights of this checkpoint instead of from nothing."""
    begin: float = 0.0
    """Where in the plan of layouts a training starts: 0.6 for one that goes on from a checkpoint,
    which has a plan of pictures of its own."""
    heads_steps: int = 0
    """First steps that train the heads of the auxiliary tasks alone: fresh ones would turn over
    what a checkpoint has learnt."""
    rows: float = 1.0
    """How many times as many rows in a batch as the plan has; with half of them a step takes little
    more than half of the time."""
    layouts: dict[str, float] = field(default_factory=dict[str, float])
    """Shares of layouts, where not those of the plan: talk 0.2 film 0.2."""
    parts: float = 0.0
    """Of the rows that lose vision tokens, the share whose vision encoder does not see them either
    (Qwen2-VL)."""
    language: Path | None = None
    """Start from the LLM of this demo checkpoint, of whatever family, as VLMs do."""
    threads: int = 1
    """Threads of the training process; one more process draws."""
    minutes_between: float = 4.0
    """Time between checkpoints."""

    @property
    def device(self) -> str:
        """Where to train."""
        return "cuda" if self.preset == "gpu" else "cpu"

    @property
    def batch_factor(self) -> float:
        """How many times the rows that the plan has."""
        return 4 * self.rows if self.preset == "gpu" else self.rows

    @property
    def total(self) -> int:
        """All steps."""
        return self.vision_steps + self.vision_again[1] + self.steps

    def done(self, step: int) -> float:
        """Share of the steps that train everything; below 0 where the encoder learns alone."""
        start, more = self.vision_again
        if start <= step < start + more:
            return -1.0
        past = more if step >= start + more else 0
        return (step - past - self.vision_steps) / self.steps

    def rate(self, step: int) -> float:
        """Learning rate: warm-up, constant, cosine."""
        if step < self.heads_steps:
            return HEADS_RATE
        rate = self.lr * min(1.0, (step - self.heads_steps + 1) / 150)
        if self.done(step) > self.constant:
            along = (self.done(step) - self.constant) / (1 - self.constant)
            rate *= max(0.01, 0.5 * (1 + math.cos(math.pi * along)))
        return rate


class Run:
    """One training run: model, auxiliary head, optimiser, and where it stands."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.demo = DEMOS[options.family]
        size = self.demo.sizes[options.preset]
        folder = options.output / "hf"
        self.model = self.demo.make(size, options.seed)
        self.heads = Heads(size.hidden)
        if not folder.exists():
            self.demo.save(folder, self.model)  # the tokenizer and templates: rows are made by them
        self.writer = Writer(folder)
        if options.init:
            self.model = self.demo.load(options.init)
        else:
            patches = sample_patches(self.writer)
            self.demo.set_patches(self.model, whitened(patches, size.vision_width))
        if options.language:
            start_from_llm(self.demo, self.model, folder, options.language)
        for module in (self.model, self.heads):
            nn.Module.to(module, options.device)
        self.parameters = dict(self.model.named_parameters())
        self.parameters |= {f"heads.{name}": p for name, p in self.heads.named_parameters()}
        self.optimiser = make_optimiser(self.parameters, options.lr)
        self.step = 0
        self.spent = 0.0
        self._resume()

    def train(self) -> None:
        """Run to the last step."""
        options = self.options
        development = make_development(self.writer)
        started = time.monotonic() - self.spent
        saved = time.monotonic()
        taken: dict[str, list[float]] = {}
        for batch in batches(options, self.step):
            values = self._train_step(batch.to(options.device))
            self.step += 1
            self.spent = time.monotonic() - started
            for name, value in values.items():  # some only where videos are shown
                taken.setdefault(name, []).append(value)
            if self.step % REPORT_STEPS == 0:
                self._report({name: fmean(each) for name, each in taken.items()})
                taken = {}
            if time.monotonic() - saved > 60 * options.minutes_between:
                self._save()
                if self.step > options.vision_steps:
                    self._evaluate(development)
                saved = time.monotonic()
        self._evaluate(development)
        self._save()
        plot_curve(options.output / "log.jsonl", options.output / "curve.png")

    def _train_step(self, batch: Batch) -> dict[str, float]:
        options = self.options
        rate = options.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        alone = self.step < options.heads_steps
        nn.Module.requires_grad_(self.model, not alone)
        torch.manual_seed(options.seed * 1_000_003 + self.step)
        done = options.done(self.step)
        drop = done >= options.dropout_from and not options.plain
        with torch.autocast(options.device, torch.bfloat16):
            learner = Learner(self.demo, self.model, self.heads)
            loss, values = batch_loss(
                learner, batch, vision_only=done < 0, drop=drop, parts=options.parts
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimiser.step()
        return {**values, "norm": float(norm), "rate": rate}

    def _evaluate(self, development: dict[str, list[Batch]]) -> None:
        row: dict[str, Any] = {"step": self.step, "minutes": round(self.spent / 60, 1)}
        for name, made in development.items():
            row[name] = exact_match(
                self.demo, self.model, [b.to(self.options.device) for b in made]
            )
        self._log(row)

    def _report(self, means: dict[str, float]) -> None:
        left = self.spent / self.step * (self.options.total - self.step)
        row = {name: round(value, 4) for name, value in means.items()}
        minutes, left = round(self.spent / 60, 1), round(left / 60)
        self._log({"step": self.step, "minutes": minutes, "minutes_left": left, **row})

    def _log(self, row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        with (self.options.output / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")

    def _save(self) -> None:
        facts = {"step": str(self.step), "spent": str(self.spent)}
        path = self.options.output / "state.safetensors"
        save_state(path, facts, self.parameters, self.optimiser)
        self.demo.save(self.options.output / "hf", self.model)

    def _resume(self) -> None:
        path = self.options.output / "state.safetensors"
        if path.exists():
            facts = load_state(path, self.parameters, self.optimiser)
            self.step, self.spent = int(facts["step"]), float(facts["spent"])
        text = json.dumps(asdict(self.options), default=str)
        (self.options.output / "options.json").write_text(text + "\n", encoding="utf-8")


def make_optimiser(parameters: dict[str, nn.Parameter], lr: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases, norms and embeddings do not."""
    matrices = [p for n, p in parameters.items() if p.ndim > 1 and "embed_tokens" not in n]
    others = [p for n, p in parameters.items() if p.ndim == 1 or "embed_tokens" in n]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def sample_patches(writer: Writer) -> torch.Tensor:
    """Patches of drawn pictures [m, 588], for the whitening."""
    rng = Random("patches")
    rows = [Row((make_scene(rng, 4, 4),), (0,), ()) for _ in range(200)]
    side_px = writer.demo.plan.bands[0].side_px
    return writer.demo.patches(writer.batch(rows, side_px).pixels)


def start_from_llm(demo: Demo, model: nn.Module, folder: Path, language: Path) -> None:
    """Give a model the LLM of another checkpoint."""
    trained = open_checkpoint(str(language))
    other = DEMOS[trained.family]
    words, trained_words = (
        open_tokenizer(texts) for texts in (open_checkpoint(str(folder)).texts, trained.texts)
    )
    known = take_over(demo.llm(model), words, other.llm(other.load(language)), trained_words)
    print(f"{known:.0%} of the words are known to {language}", flush=True)


def batches(options: Options, start: int) -> Iterator[Batch]:
    """Batches from `start` on, drawn ahead by another process."""
    context = multiprocessing.get_context("spawn")
    queue: Queue[Batch] = context.Queue(maxsize=16)  # pyright: ignore[reportAssignmentType]
    worker = context.Process(target=_draw_batches, args=(queue, options, start), daemon=True)
    worker.start()
    try:
        for _ in range(start, options.total):
            while True:
                try:
                    batch = queue.get(timeout=60)
                    break
                except Empty:
                    if not worker.is_alive():
                        raise RuntimeError("The process that draws the batches died.") from None
            yield batch
    finally:
        worker.terminate()


def _draw_batches(queue: "Queue[Batch]", options: Options, start: int) -> None:
    torch.set_num_threads(1)
    writer = Writer(options.output / "hf")
    writer.demo = with_layouts(writer.demo, options.layouts)
    for step in range(start, options.total):
        factor, begin = options.batch_factor, options.begin
        done = options.done(step)
        queue.put(make_batch(writer, options.seed, step, done, factor=factor, begin=begin))
    Event().wait()  # its tensors are gone with the process, and some may wait to be taken


def main() -> None:
    """Train."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    Run(options).train()


if __name__ == "__main__":
    main()
