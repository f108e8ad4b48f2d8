"""What the tests of the camera page do in a tab of the browser, and what they see there."""

from typing import Any

SLOW_MS = 20_000  # for two cores that do other things too


def ask(tab: Any, question: str) -> None:
    """Ask, and wait for the answer."""
    before = tab.evaluate("document.querySelector('#asked').dataset.number ?? null")
    tab.fill("#question", question)
    tab.press("#question", "Enter")
    answered(tab, question, before)


def until(tab: Any, expression: str) -> None:
    """Wait until a JavaScript expression is true."""
    tab.wait_for_function(f"() => {expression}")


def answered(tab: Any, question: str, before: str | None) -> None:
    """Wait for the answer to a question, with the picture that it was read from."""
    tab.wait_for_function(
        """([question, before]) => {
            const canvas = document.querySelector("#asked");
            const newer = canvas.dataset.number && canvas.dataset.number !== before;
            const text = document.querySelector("#answer");
            return newer && canvas.dataset.layers > 0 && text.textContent
                && !text.classList.contains("writing")
                && document.querySelector("#answer-question").textContent === question;
        }""",
        arg=[question, before],
    )


def brightness(tab: Any, canvas: str) -> list[int]:
    """Return the brightness of the middle of each of 16 x 12 cells: the grid of 448 x 336."""
    return tab.evaluate(
        """(selector) => {
            const canvas = document.querySelector(selector);
            const pen = canvas.getContext("2d");
            const found = [];
            for (let row = 0; row < 12; row++) {
                for (let column = 0; column < 16; column++) {
                    const x = Math.floor((column + 0.5) * canvas.width / 16);
                    const y = Math.floor((row + 0.5) * canvas.height / 12);
                    const [r, g, b] = pen.getImageData(x, y, 1, 1).data;
                    found.push(r + g + b);
                }
            }
            return found;
        }""",
        canvas,
    )


def text(tab: Any, selector: str) -> str:
    return tab.text_content(selector).strip()


def choose_overlay(tab: Any, mode: str) -> None:
    tab.locator(f"#overlay input[value={mode}]").check(force=True)
