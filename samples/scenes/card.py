"""The model card of a demo checkpoint: what it is, how it was made, what it gets right."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from curve import plot_curve
from mixture import LAYOUTS_FROM
from safetensors import safe_open
from transformers import Qwen2VLForConditionalGeneration

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# A small Qwen2-VL that answers questions about drawn scenes

It makes the examples of tokprune work and lets its pruning be measured where no pretrained weights
can be fetched. It knows drawn shapes, colours and digits, and nothing else.

**It was trained with dropout of vision tokens, of both kinds described below.** Such a model bears
pruning better than one that has never missed a token: every pruning figure measured with it should
say so.

* Architecture: stock `Qwen2VLForConditionalGeneration`, {parameters:,} parameters, bfloat16.
  Vision encoder {vision}; LLM {text}. `rope_theta` 5 in the LLM, 10000 in the vision encoder.
* Tokenizer: byte-level BPE of {tokens} tokens with Qwen2-VL's special tokens and the form of its
  chat template, without a default system message. Digits and capital letters are single tokens.
* Pictures: any size of {min_tokens} to {max_tokens} vision tokens (28 x 28 px each); trained on 16
  to 400, mostly 64 to 208.

## Data

Scenes of `tokprune.scenes`, drawn while training, no two alike: 6 shapes in 8 colours on a noisy
background with distractors, small and large within a picture, digits on some large ones, scale 0.5
to 1.5. Every batch is a function of the seed and the step. The test scenes below are another
stream of random numbers.

## Recipe

{recipe}

1. Vision encoder alone: a throw-away linear head names shape, colour, size and digit of every
   cell. Without this, shapes and digits stay at chance.
2. Questions, with half of that loss beside them. One row is a picture and several questions about
   it under a block-causal mask. Tiny pictures first, then larger ones.
3. Beside step 2, two throw-away heads inside the LLM: after its second layer every vision token is
   asked for its row and column, after its third the last token of every phrase ("the green
   circle") for the thing it means. Answers alone teach that too slowly.
4. From {layouts_from:.0%} of step 2 on: dialogues of two to five turns, system messages, two or
   three pictures, a later picture, the question before the picture.
5. From {dropout_from:.0%} on, vision tokens are hidden from the LLM in 70 % of the rows. Half of
   these lose a share U(0, 0.7) of all tokens; the other half lose U(0.4, 1) of the background and
   U(0, 0.15) of the things.

AdamW, learning rate {lr:g} with warm-up and cosine, betas 0.9 and 0.98, weight decay 0.05, bfloat16
autocast.

![learning curve](curve.png)

## Accuracy

Exact match, all vision tokens kept, weights in bfloat16 and arithmetic in float32, one answer per
question and greedy. {asked:,} test scenes of mixed sizes: **{all:.1%}**.

| group | mixed sizes | 196 tokens |
|---|---|---|
{groups}

`compare` shows two pictures that together have about as many tokens as the size says.

| size of the picture | exact match | questions |
|---|---|---|
{sizes}

| layout | exact match | answers |
|---|---|---|
{layouts}

In the layouts, earlier turns of a dialogue hold the true answers.

Stock `generate()` is right on exactly the same questions in {agree} of {generated} cases tried.

{scorer}

## Licence

Apache-2.0, like the code that drew the data.
"""


@dataclass(frozen=True)
class Tally:
    """Right answers, and how many were asked."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Right over asked."""
        return self.right / self.asked


def write_card(
    folder: Path,
    model: Qwen2VLForConditionalGeneration,
    tables: Mapping[str, Mapping[str, Tally]],
    run: Path,
) -> None:
    """Write README.md and curve.png. RUN/history.md, if there, tells how the run came about."""
    plot_curve(run / "log.jsonl", folder / "curve.png")
    options: dict[str, Any] = json.loads((run / "options.json").read_text(encoding="utf-8"))
    overall = next(iter(tables["all"].values()))
    stock = tables["stock"]["generate()"]
    text = CARD.format(
        **_architecture(model),
        recipe=_recipe(run, options),
        layouts_from=LAYOUTS_FROM,
        dropout_from=options["dropout_from"],
        lr=options["lr"],
        scorer=_scorer(folder / "scorer.safetensors"),
        asked=overall.asked,
        all=overall.share,
        groups=_groups(tables["group"], tables["group_196"]),
        sizes=_lines(tables["size"]),
        layouts=_lines(tables["layout"]),
        agree=stock.right,
        generated=stock.asked,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _architecture(model: Qwen2VLForConditionalGeneration) -> dict[str, Any]:
    text: Any = model.config.text_config
    vision: Any = model.config.vision_config
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vision": f"{vision.depth} layers x {vision.embed_dim}, {vision.num_heads} heads",
        "text": f"{text.num_hidden_layers} layers x {text.hidden_size}, "
        f"{text.num_attention_heads} heads ({text.num_key_value_heads} for keys and values), "
        f"mlp {text.intermediate_size}",
        "tokens": text.vocab_size,
        "min_tokens": 4,
        "max_tokens": 400,
    }


def _recipe(run: Path, options: Mapping[str, Any]) -> str:
    history = run / "history.md"
    if history.exists():
        return history.read_text(encoding="utf-8").strip()
    log = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return (
        f"{options['vision_steps']} steps of the vision encoder alone, {options['steps']} steps of "
        f"everything, seed {options['seed']}, from nothing, by `samples/scenes/train.py`, on "
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
    own = {facts["kind"]: json.loads(facts["metrics"])}
    found = {**json.loads(facts["others"]), **own}
    kinds["grid"] = "rows and heads as channels of 2-D convolutions"
    kinds[facts["kind"]] += " (shipped)"
    rows = "\n".join(
        f"| {kinds[kind]} | {m['recall_at_50']:.3f} | {m['recall_at_25']:.3f} | "
        f"{m['spearman']:.3f} | {m['kl']:.3f} |"
        for kind, m in found.items()
    )
    return f"""\
## Scorer

`scorer.safetensors` is from `tokprune-train` on questions of the training split:
{facts["labels"]} labels, one for every right answer ({facts["answered_wrongly"]} wrong ones were
left out). Agreement with the true relevance on {own[facts["kind"]]["samples"]:.0f} labels of other
pictures, on which the network was also chosen:

| scorer | recall at 50 % | recall at 25 % | Spearman | KL |
|---|---|---|---|---|
{rows}"""


def _groups(mixed: Mapping[str, Tally], fixed: Mapping[str, Tally]) -> str:
    return "\n".join(
        f"| {name} | {tally.share:.1%} of {tally.asked} | "
        f"{fixed[name].share:.1%} of {fixed[name].asked} |"
        for name, tally in mixed.items()
        if name in fixed
    )


def _lines(tallies: Mapping[str, Tally]) -> str:
    return "\n".join(f"| {name} | {t.share:.1%} | {t.asked} |" for name, t in tallies.items())
