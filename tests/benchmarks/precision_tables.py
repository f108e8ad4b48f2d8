"""The tables of precision.py: size and speed, answers, and how far the graphs are."""

from typing import Any

BUDGETS = (1.0, 0.5, 0.25)
GRAPHS = ("vision_encoder", "first_layer", "scorer", "llm")


def markdown(result: dict[str, Any]) -> str:
    """Return the tables that docs show."""
    lines = ["# Precisions on the CPU", ""]
    if speed := result.get("speed"):
        lines += speed_lines(speed)
    if answers := result.get("answers"):
        lines += answer_lines(answers)
    return "\n".join(lines) + "\n"


def speed_lines(speed: dict[str, Any]) -> list[str]:
    """Size and speed, and which is fastest."""
    rows = speed["rows"]
    fastest = {
        what: min(rows, key=lambda row: row[f"{what}_cpu_ms"])["precision"]
        for what in ("prefill", "decode")
    }
    versions = ", ".join(f"{name} {number}" for name, number in speed["versions"].items())
    lines = [
        f"{speed['llm']}, form `{speed['form']}`: a prefill of {speed['prefill_rows']} rows, and a "
        f"token after it. Medians of interleaved rounds by processor time, wall time in brackets; "
        "every sample is in `precision.json`. Size is that of the files that this form reads, and "
        f"of the table of embeddings. {speed['processor']}, {speed['date']}, {versions}. "
        f"{speed['note']}".strip(),
        "",
        f"Fastest for prefill: **{fastest['prefill']}**. Fastest for decode: "
        f"**{fastest['decode']}**.",
        "",
        "| precision | LLM, MB | prefill ms | times fp32 | decode ms a token | times fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["precision"], row["llm_megabytes"]]
        for what in ("prefill", "decode"):
            ms = row[f"{what}_cpu_ms"]
            cells += [f"{ms:.1f} ({row[f'{what}_wall_ms']:.1f})"]
            cells += [f"{rows[0][f'{what}_cpu_ms'] / ms:.2f}"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return [*lines, ""]


def answer_lines(answers: dict[str, Any]) -> list[str]:
    """How many answers are right, how many are those of float32, and how far the graphs are."""
    first = answers["compared_with"]
    shares = [f"{budget:.0%}" for budget in BUDGETS]
    lines = [
        f"Answers of the demos, by their default selectors, to {answers['questions']} questions of "
        f"the test split ({answers['processor']}, {answers['date']}): right, and in brackets the "
        f"same text as in {first}, with {', '.join(shares)} of the vision tokens.",
        "",
        f"| demo | precision | bundle, MB | {' | '.join(shares)} |",
        "|---|---|---|" + "---|" * len(shares),
    ]
    for family, told in answers["demos"].items():
        for precision, size in told["bundle_bytes"].items():
            mine = {row["budget"]: row for row in told["rows"] if row["precision"] == precision}
            cells = [f"{mine[b]['right']:.1%} ({mine[b]['alike']:.1%})" for b in BUDGETS if mine]
            cells = cells or ["not run: GPUs alone"] * len(BUDGETS)
            lines.append(f"| {family} | {precision} | {size / 1e6:.1f} | {' | '.join(cells)} |")
    lines += [
        "",
        "Each graph against the checkpoint in float32, as every export compares it: the least "
        "cosine of all cases, and in brackets the largest difference as a share of the largest "
        "value (1 where that is less). The LLM in int8 and int4 stands beside the checkpoint with "
        "weights that were rounded alike: what rounding itself changes is in the answers above. "
        "bf16 is computed in float32 from weights that were rounded.",
        "",
        f"| demo | precision | {' | '.join(GRAPHS)} |",
        "|---|---|" + "---|" * len(GRAPHS),
    ]
    for family, told in answers["demos"].items():
        for precision, rows in told["parity"].items():
            cells = [f"{row['cosine']:.5f} ({row['of_largest']:.1e})" for row in rows]
            lines.append(f"| {family} | {precision} | {' | '.join(cells)} |")
    return lines
