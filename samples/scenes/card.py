"""The model card of a demo checkpoint: what it is, how it was made, what it gets right."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

from curve import plot_curve
from demos import Demo
from safetensors import safe_open
from torch import nn

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# A small {name} that answers questions about drawn scenes

It makes the examples of tokprune work and lets its pruning be measured where no pretrained weights
can be fetched. It knows drawn shapes, colours and digits, signs of two to four characters, forms
and charts with few fields and bars, and nothing else.

**It was trained with dropout of vision tokens, of both kinds described below.** Such a model bears
pruning better than one that has never missed a token: every pruning figure measured with it should
say so.

* Architecture: {architecture}, {parameters:,} parameters, bfloat16. Vision encoder {vision}; LLM
  {text}. `rope_theta` of the LLM {theta:g}.
* Tokenizer: {tokenizer} ({tokens} tokens).
* Pictures: {pictures}.

## Data

Scenes of `tokprune.scenes`, drawn while training, no two alike: 6 shapes in 8 colours on a noisy
background with distractors, small and large within a picture, digits on some large ones, scale 0.5
to 1.5; signs with two to four characters among them; and pages: forms of two to eight fields,
charts of bars with numbers. A quarter of the large scenes are crowded, with 20 things and more.
{films}Every batch is a function of the seed and the step. The test scenes below are another
stream of random numbers.

## Recipe

{recipe}

1. Vision encoder alone: a throw-away linear head names what every vision token shows: shape,
   colour, size and digit, and of a text its first two characters there, the place of these in the
   text and the field that it belongs to. Without this, shapes, digits and letters stay at chance.
2. Questions, with half of that loss beside them. One row is a picture and several questions about
   it under a block-causal mask. Tiny pictures first, then larger ones.
3. Beside step 2, throw-away heads inside the LLM: after its second layer every vision token is
   asked for its row and column, after its third the last token of every phrase ("the green
   circle") for the thing it means, and while a text is spelled every token for the character that
   comes next: where it stands, and which one it is. One head of the third and fourth layers is told
   to attend to it. Answers alone teach that too slowly.{doing}
4. From {layouts_from:.0%} of step 2 on, other layouts beside single pictures: {layouts_trained}.
5. From {dropout_from:.0%} on, vision tokens are hidden from the LLM in 70 % of the rows. Half of
   these lose a share U(0, 0.7) of all tokens; the other half lose U(0.4, 1) of the background and
   U(0, 0.15) of the things.

AdamW, learning rate {lr:g} with warm-up and cosine, betas 0.9 and 0.98, weight decay 0.05, bfloat16
autocast.

![learning curve](curve.png)

## Accuracy

Exact match, all vision tokens kept, weights in bfloat16 and arithmetic in float32, one answer per
question and greedy. {asked:,} test scenes of mixed sizes: **{all:.1%}**.

| group | mixed sizes | 392 x 392 px |
|---|---|---|
{groups}

`compare` shows two pictures that together have about as many pixels as the size says.

| size of the picture | exact match | questions |
|---|---|---|
{sizes}

| layout | exact match | answers |
|---|---|---|
{layouts}

In the layouts, earlier turns of a dialogue hold the true answers.
{videos}
{stock}

{scorer}

## Licence

Apache-2.0, like the code that drew the data.
"""
VIDEOS = """
{asked:,} test videos of {first}: **{all:.1%}**.

| group of questions about videos | exact match | questions |
|---|---|---|
{groups}

| length and size of the video | exact match | questions |
|---|---|---|
{sizes}
"""
LAYOUTS = {
    "talk": "dialogues of two to five turns",
    "several": "two or three pictures",
    "first": "the question before the picture",
    "later": "a later picture",
    "film": "videos",
}
DOING = """ In a video, every vision
   token is asked for its frame too, after the third layer for what the thing it shows has done so
   far and since when, and after the fourth the phrase for what its thing does and where it ends.
   Before that was asked, directions stayed at chance."""
FILMS = (
    "Videos of `tokprune.scenes.film`: two to four things that move, appear, disappear or turn "
    "another colour; small and short ones first. Also asked while training, and not in the suite:\n"
    "a description of all that happens, and whether or where a thing is in one of the frames.\n"
)


@dataclass(frozen=True)
class Tally:
    """Right answers, and how many were asked."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Right over asked."""
        return self.right / self.asked


Tables: TypeAlias = Mapping[str, Mapping[str, Tally]]


def write_card(folder: Path, demo: Demo, model: nn.Module, tables: Tables, run: Path) -> None:
    """Write README.md and curve.png. RUN/history.md, if there, tells how the run came about."""
    plot_curve(run / "log.jsonl", folder / "curve.png")
    options: dict[str, Any] = json.loads((run / "options.json").read_text(encoding="utf-8"))
    [overall] = tables["all"].values()
    films = "film_group" in tables
    text = CARD.format(
        **demo.card._asdict(),
        **_sizes(demo, model),
        recipe=_recipe(run, options),
        films=FILMS if films else "",
        doing=DOING if films else "",
        layouts_from=_layouts_from(demo, options),
        layouts_trained=", ".join(LAYOUTS[name] for name in demo.plan.layouts),
        dropout_from=options["dropout_from"],
        lr=options["lr"],
        scorer=_scorer(folder / "scorer.safetensors"),
        asked=overall.asked,
        all=overall.share,
        groups=_groups(tables["group"], tables["group_196"]),
        sizes=_lines(tables["size"]),
        layouts=_lines(tables["layout"]),
        videos=_videos(tables) if films else "",
        stock=_stock(tables),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _layouts_from(demo: Demo, options: Mapping[str, Any]) -> float:
    """The share of the steps; a training that goes on from a checkpoint may begin in mid-plan."""
    begin = options.get("begin", 0.0)
    return max(0.0, (demo.plan.layouts_from - begin) / (1 - begin))


def _videos(tables: Tables) -> str:
    first, overall = next(iter(tables["film_size"].items()))
    return VIDEOS.format(
        asked=overall.asked,
        all=overall.share,
        first=first,
        groups=_lines(tables["film_group"]),
        sizes=_lines(tables["film_size"]),
    )


def _stock(tables: Tables) -> str:
    """How transformers' own generate() compares."""
    found = {**tables["stock"], **tables.get("film_stock", {})}
    cases = " and ".join(f"{t.right} of {t.asked} cases with {kind}" for kind, t in found.items())
    return f"`generate()` of transformers is right on exactly the same questions in {cases} tried."


def _sizes(demo: Demo, model: nn.Module) -> dict[str, Any]:
    llm = demo.llm(model)
    text: Any = llm.layers[0].self_attn.config
    named: dict[str, Any] = dict(model.named_modules())
    towers = ("visual", "vision_tower", "tower")
    [vision] = (m.config for name, m in named.items() if name.rpartition(".")[2] in towers)
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    heads = getattr(vision, "num_heads", None) or vision.num_attention_heads
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vision": f"{depth} layers x {width}, {heads} heads",
        "text": f"{text.num_hidden_layers} layers x {text.hidden_size}, "
        f"{text.num_attention_heads} heads ({text.num_key_value_heads} for keys and values), "
        f"mlp {text.intermediate_size}",
        "theta": text.rope_parameters["rope_theta"],
        "tokens": text.vocab_size,
    }


def _recipe(run: Path, options: Mapping[str, Any]) -> str:
    history = run / "history.md"
    if history.exists():
        return history.read_text(encoding="utf-8").strip()
    log = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    start = "from nothing"
    if options["language"]:
        start = f"the LLM from that of the demo {Path(options['language']).name}, the rest {start}"
    if options["init"]:
        start = f"from {options['init']}"
    return (
        f"{options['vision_steps']} steps of the vision encoder alone, {options['steps']} steps of "
        f"everything, seed {options['seed']}, {start}, by `samples/scenes/train.py`, on "
        f"{datetime.now(timezone.utc).date().isoformat()} with 2 CPU cores (AMD EPYC), in "
        f"{json.loads(log[-1])['minutes']:.0f} minutes."
    )


def _scorer(path: Path) -> str:
    """What the scorer's own metadata say; nothing where there is no scorer yet."""
    if not path.exists():
        return ""
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    kinds = {"attention": "attention, no network", "paper": "the paper's network"}
    own = json.loads(facts["metrics"])
    found = {**json.loads(facts["others"]), facts["kind"]: own}
    kinds["grid"] = "rows and heads as channels of 2-D convolutions"
    kinds["asked"] = "the same, the vision tokens and the words of the question, trained on answers"
    kinds["frames"] = kinds["asked"] + ", over frames too"
    kinds[facts["kind"]] += " (shipped)"
    rows = [_agreement(kinds[kind], metrics) for kind, metrics in found.items()]
    apart = json.loads(facts["metrics_by_modality"])
    rows += [_agreement(f"shipped, on {name}s", metrics) for name, metrics in apart.items()]
    for file in (path, path.with_name("glance_scorer.safetensors")):
        rows += _by_glances(file)
    table = "\n".join(rows)
    return f"""\
## Scorer

`scorer.safetensors` is from `samples/scenes/make_scorer.py`, on questions of the training split:
{facts["labels"]} labels, one for every right answer ({facts["answered_wrongly"]} wrong ones were
left out). Agreement with the true relevance on {own["samples"]:.0f} labels of others, and how far
their answers move when the best-scored tokens alone are left:

| scorer | recall at 50 % | recall at 25 % | Spearman | KL | KL of answers, 25 and 11 % kept |
|---|---|---|---|---|---|
{table}"""


def _by_glances(path: Path) -> list[str]:
    """What a scorer makes of first looks, if it has learnt from any."""
    if not path.exists():
        return []
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    name = f"{path.stem}, from the first of two looks alone"
    return [_agreement(name, json.loads(facts["by_glances"]))] if "by_glances" in facts else []


def _agreement(name: str, metrics: Mapping[str, float]) -> str:
    keys = ("recall_at_50", "recall_at_25", "spearman", "kl", "answers_lost")
    # older files do not have the last one
    figures = (f"{metrics[key]:.3f}" if key in metrics else "" for key in keys)
    return f"| {name} | {' | '.join(figures)} |"


def _groups(mixed: Mapping[str, Tally], fixed: Mapping[str, Tally]) -> str:
    return "\n".join(
        f"| {name} | {tally.share:.1%} of {tally.asked} | "
        f"{fixed[name].share:.1%} of {fixed[name].asked} |"
        for name, tally in mixed.items()
        if name in fixed
    )


def _lines(tallies: Mapping[str, Tally]) -> str:
    return "\n".join(f"| {name} | {t.share:.1%} | {t.asked} |" for name, t in tallies.items())
