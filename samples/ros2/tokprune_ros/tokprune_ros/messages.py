"""Between ROS messages and the values of asking.py. Messages come from outside: needs no ROS."""

from typing import Any

from tokprune_ros.asking import Outcome, Question
from tokprune_ros.diagnostics import Report


def question_of(goal: Any) -> Question:
    """Read an Ask.Goal."""
    return Question(
        prompt=goal.prompt,
        budget=goal.budget,
        choices=tuple(goal.choices),
        deadline_s=goal.deadline_s,
        max_frame_age_s=goal.max_frame_age_s,
        max_new_tokens=goal.max_new_tokens,
        encode=goal.encode,
    )


def fill_result(result: Any, outcome: Outcome[Any]) -> Any:
    """Write an Ask.Result, and return it. rclpy wants floats where a float64 is declared."""
    result.error_code, result.error = outcome.error_code, outcome.error
    answer = outcome.answer
    if answer is None:
        return result
    if outcome.header is not None:
        result.header = outcome.header
    result.text, result.finish_reason = answer.text, answer.finish_reason
    result.choice = answer.choice or ""
    probabilities = answer.probabilities or {}
    result.choices = list(probabilities)
    result.probabilities = [float(value) for value in probabilities.values()]
    result.frame_number = answer.frames[0].number
    result.frame_age_s = float(answer.frame_age_s or 0.0)
    result.kept, result.total = answer.kept, answer.total
    result.encode, result.encoded = answer.encode, answer.encoded
    result.encode_reason = answer.encode_reason
    result.ttft_ms = float(answer.ttft_ms)
    result.stages = list(answer.timings_ms)
    result.stage_ms = [float(ms) for ms in answer.timings_ms.values()]
    return result


def fill_status(status: Any, pair: Any, report: Report, name: str) -> Any:
    """Write a DiagnosticStatus, and return it.

    Args:
        status: an empty one.
        pair: makes an empty KeyValue.
        report: what it shall say.
        name: of the node.
    """
    status.level, status.message = report.level, report.message
    status.name, status.hardware_id = f"{name}: questions about pictures", name
    for key, value in report.values:
        status.values.append(pair(key=key, value=value))
    return status
