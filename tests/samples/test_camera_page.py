"""The camera page in headless Chromium: what somebody who opens it sees and can do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import camera_pages
import pytest
from camera_tabs import SLOW_MS, answered, ask, brightness, choose_overlay, text, until

NO_BROWSER = camera_pages.why_no_browser()
pytestmark = [
    pytest.mark.torch,
    pytest.mark.demo,
    pytest.mark.skipif(NO_BROWSER is not None, reason=NO_BROWSER or "-"),
]
PICTURES = Path(__file__).parents[2] / "build" / "tests" / "camera-page"
STILL = "fake://scenes?seed=3&size=448x336&motion=0"
# Every 11 seconds: two without the camera, then one picture for five, of which three are FROZEN.
FAILING = "fake://scenes?seed=4&size=448x336&drop=1:2&freeze=5:5&every=11"
BEGINNING = {
    "budget": "0.5",
    "selector": None,
    "encode": "full",
    "choices": [],
    "mode": "on_demand",
}


@pytest.fixture(scope="module")
def server(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("page")
    arguments = ("--source", STILL, "--source", FAILING, "--name", "still", "--name", "failing")
    with camera_pages.camera_page(
        demo_bundle, folder, *arguments, "--mode", "on_demand", "--question", "what shape is blue?"
    ) as page:
        yield page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with camera_pages.browser() as started:
        yield started


@pytest.fixture
def opened(server: Any, chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page; whatever it complains of fails the test."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def start(width: int = 1440, height: int = 900, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(SLOW_MS)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "console",
            lambda said: complaints.append(said.text) if said.type == "error" else None,
        )
        tab.goto(server.url)
        tab.wait_for_selector("#live[data-number]")
        return tab

    server.set_pace(0)
    for source in (0, 1):
        server.tell({"type": "resume", "source": source})
        server.tell({"type": "set", "source": source, **BEGINNING})
    yield start
    for context in contexts:
        context.close()
    assert not complaints


def test_the_page_starts_on_a_fake_camera_and_shows_its_frames(
    opened: Callable[..., Any],
) -> None:
    tab = opened()
    first = int(tab.get_attribute("#live", "data-number"))
    until(tab, f"document.querySelector('#live').dataset.number > {first + 5}")
    assert text(tab, "#state") == "LIVE"
    assert float(text(tab, "#live-age").removesuffix(" s")) < 1
    # The camera's status comes on its own, and its first may be older than the first picture.
    until(tab, "document.querySelector('#live-size').textContent")
    assert text(tab, "#live-size").split()[::2] == ["448", "336"]
    assert "fake://scenes" in text(tab, "#live-about")
    assert tab.evaluate("document.querySelector('#live').width") == 448
    assert max(brightness(tab, "#live")) - min(brightness(tab, "#live")) > 60
    assert [text(tab, f"#tab-{n} span") for n in (0, 1)] == ["still", "failing"]


def test_an_answer_streams_in_and_comes_with_overlay_and_numbers(
    server: Any, opened: Callable[..., Any]
) -> None:
    tab = opened()
    server.set_pace(0.7)
    tab.fill("#question", "where is the red cross?")
    tab.press("#question", "Enter")
    tab.wait_for_selector("#answer.writing:not(:empty)")
    begun = text(tab, "#answer")
    answered(tab, "where is the red cross?", None)
    whole = text(tab, "#answer")
    assert whole.startswith(begun)
    assert len(whole.split()) == 2 > len(begun.split())
    assert text(tab, "#spoken") == whole
    assert text(tab, "#kept") == "96"
    assert text(tab, "#kept-total") == "of 192"
    assert float(text(tab, "#ttft")) > 0
    assert float(text(tab, "#rate")) > 0
    age_s = float(text(tab, "#age").removesuffix(" s"))
    until(tab, f"parseFloat(document.querySelector('#age').textContent) > {age_s}")
    widths = tab.evaluate("[...document.querySelector('#bar').children].map(i => i.offsetWidth)")
    stages = tab.locator("#bar-legend li").all_text_contents()
    assert len(widths) == len(stages)
    assert any(stage.startswith("vision encoder") for stage in stages)
    assert any(stage.startswith("prefill") for stage in stages)
    total = tab.evaluate("document.querySelector('#bar').offsetWidth")
    assert sum(widths) == pytest.approx(total, abs=3 * len(widths))


def test_the_overlay_dims_what_was_not_kept_and_can_be_changed(
    opened: Callable[..., Any],
) -> None:
    tab = opened()
    tab.locator("#budget").press("Home")  # the smallest share, 0.05
    until(tab, "document.querySelector('#budget-text').textContent === '0.05'")
    ask(tab, "what color is the cross?")
    assert text(tab, "#kept") == "10"
    kept = brightness(tab, "#asked")
    choose_overlay(tab, "off")
    plain = brightness(tab, "#asked")
    dimmed = sum(now < 0.6 * before for now, before in zip(kept, plain, strict=True))
    assert dimmed == 192 - 10
    choose_overlay(tab, "heat")
    heat = brightness(tab, "#asked")
    assert heat != plain
    assert "relevance" in text(tab, "#legend")
    tab.locator("body").press("o")
    assert tab.get_attribute("#asked", "data-mode") == "off"
    tab.locator("body").press("o")
    assert tab.get_attribute("#asked", "data-mode") == "kept"
    assert brightness(tab, "#asked") == kept
    tab.locator("#budget").press("End")  # all of them: nothing is dimmed, and nothing scored
    until(tab, "document.querySelector('#budget-text').textContent === '1.00'")
    ask(tab, "what color is the square?")
    assert text(tab, "#kept") == "192"
    assert min(brightness(tab, "#asked")) > 0.6 * min(plain)


def test_what_is_encoded_can_be_chosen_and_is_told_where_it_is_not_all(
    opened: Callable[..., Any],
) -> None:
    one, other = opened(), opened()
    ask(one, "what shape is blue?")
    assert text(one, "#encoded") == ""
    one.select_option("#encode", "coarse")
    until(other, "document.querySelector('#encode').value === 'coarse'")
    ask(one, "what shape is red?")
    count, encoded, way = text(one, "#encoded").split()
    assert 0 < int(count) < 192
    assert (encoded, way) == ("encoded", "(coarse)")
    assert f" · {count} encoded · " in text(one, "#history li:first-child .figures")
    one.select_option("#encode", "follow")
    ask(one, "what shape is red?")
    until(one, "document.querySelector('#encoded').textContent.endsWith('(follow)')")
    ask(one, "what shape is red?")
    until(one, "parseInt(document.querySelector('#encoded').textContent) < 192")


def test_choices_are_answered_with_probabilities_and_stay_text(
    opened: Callable[..., Any],
) -> None:
    tab = opened()
    evil = "<img src=x onerror=document.title='owned'>"
    tab.fill("#choices", f"{evil}, <b>no</b>")
    tab.press("#choices", "Enter")
    ask(tab, "<script>document.title='owned'</script>?")
    assert text(tab, "#answer") in (evil, "<b>no</b>")
    assert text(tab, "#answer-question") == "<script>document.title='owned'</script>?"
    listed = tab.locator("#probabilities li").all_text_contents()
    assert sum(float(row[-4:]) for row in listed) == pytest.approx(1, abs=0.02)
    inside = "#answer *, #answer-question *, #history .said *, #history .asked *"
    assert tab.locator(inside).count() == 0
    assert tab.title() == "tokprune camera"
    tab.fill("#choices", "")
    tab.press("#choices", "Enter")
    ask(tab, "what shape is blue?")
    assert not tab.is_visible("#probabilities")


def test_earlier_answers_can_be_looked_at_again_on_their_pictures(
    opened: Callable[..., Any],
) -> None:
    tab = opened()
    ask(tab, "what shape is green?")
    first = tab.get_attribute("#asked", "data-number")
    ask(tab, "what shape is purple?")
    newest = tab.get_attribute("#asked", "data-number")
    tab.locator("#history li").nth(1).locator("button").press("Enter")
    answered(tab, "what shape is green?", newest)
    assert tab.get_attribute("#asked", "data-number") == first
    assert tab.locator("#history [aria-current=true] .asked").text_content().endswith("green?")
    tab.click("#back")
    answered(tab, "what shape is purple?", first)
    assert tab.get_attribute("#asked", "data-number") == newest


def test_a_running_answer_can_be_cancelled(server: Any, opened: Callable[..., Any]) -> None:
    tab = opened()
    server.set_pace(1.5)
    assert tab.is_disabled("#cancel")
    tab.fill("#question", "where is the red cross?")
    tab.press("#question", "Enter")
    tab.wait_for_selector("#answer.writing:not(:empty)")
    tab.click("#cancel")
    tab.wait_for_selector("#answer .note")
    assert text(tab, "#answer .note") == "cancelled"
    assert len(text(tab, "#answer").split()) == 2  # one word of the answer, and the note
    server.set_pace(0)
    ask(tab, "what shape is blue?")  # the model can be asked again


def test_freeze_and_loss_are_told_and_answers_go_on_afterwards(
    opened: Callable[..., Any],
) -> None:
    tab = opened()
    tab.click("#tab-1")
    tab.locator("#mode input[value=continuous]").check(force=True)
    tab.wait_for_selector("#state[data-state=LOST]")
    assert "lost" in text(tab, "#veil")
    assert text(tab, "#tab-1 small") == "LOST"
    assert text(tab, "#error-code") == "camera_lost"
    assert text(tab, "#error-message") == "The camera is lost: it is unplugged."
    assert "tried again" in text(tab, "#error-hint")
    assert "camera" not in text(tab, "#answer").lower()  # errors are no answers
    tab.wait_for_selector("#state[data-state=LIVE]")
    assert "reconnected" in text(tab, "#live-about")
    tab.wait_for_selector("#error[hidden]", state="attached")  # an answer came
    tab.wait_for_selector("#state[data-state=FROZEN]")
    assert "repeats one picture" in text(tab, "#veil")
    assert text(tab, "#error-code") == "camera_frozen"
    told = text(tab, "#history li:not(.failed) time")
    tab.wait_for_selector("#state[data-state=LIVE]")
    until(tab, f"document.querySelector('#history li time').textContent !== '{told}'")


def test_two_browsers_see_and_steer_the_same_watcher(opened: Callable[..., Any]) -> None:
    one, other = opened(), opened()
    one.locator("#mode input[value=continuous]").check(force=True)
    until(other, "document.querySelector('#mode input:checked').value === 'continuous'")
    one.fill("#question", "how many shapes are there?")
    one.press("#question", "Enter")
    answered(other, "how many shapes are there?", None)
    assert other.input_value("#question") == "how many shapes are there?"
    other.click("#pause")
    one.wait_for_selector("#pause[aria-pressed=true]")
    assert text(one, "#pause") == "Go on"
    one.click("#pause")
    other.wait_for_selector("#pause[aria-pressed=false]")
    other.select_option("#selector", "uniform")
    until(one, "document.querySelector('#selector').value === 'uniform'")


def test_the_browser_s_own_camera_is_a_source(opened: Callable[..., Any]) -> None:
    tab = opened()
    tab.click("#webcam")
    tab.wait_for_selector("[role=tab][aria-selected=true]:has-text('browser camera')")
    tab.wait_for_selector("#state[data-state=LIVE]")
    first = int(tab.get_attribute("#live", "data-number") or 0)
    until(tab, f"document.querySelector('#live').dataset.number > {first + 5}")
    ask(tab, "what shape is green?")
    tab.click("#webcam")
    tab.wait_for_selector("[role=tab]:has-text('browser camera')", state="detached")
    assert text(tab, "#tabs [aria-selected=true] span") == "still"


def test_a_mistake_is_told_with_its_code_and_nothing_changes(opened: Callable[..., Any]) -> None:
    tab = opened()
    tab.locator("#budget-kind input[value=ttft]").check(force=True)
    tab.fill("#question", "what shape is blue?")
    tab.press("#question", "Enter")
    tab.wait_for_selector("#error-code:has-text('not_calibrated')")
    assert tab.is_visible("#error-action")
    tab.locator("#budget-kind input[value=share]").check(force=True)
    ask(tab, "what shape is red?")
    assert not tab.is_visible("#error")


def test_everything_can_be_done_with_the_keyboard(opened: Callable[..., Any]) -> None:
    tab = opened()
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "question"
    tab.keyboard.press("Escape")
    tab.keyboard.press("?")
    assert tab.is_visible("#help")
    tab.keyboard.press("Escape")
    tab.keyboard.press("2")
    assert text(tab, "#tabs [aria-selected=true] span") == "failing"
    tab.keyboard.press("1")
    tab.keyboard.press("p")
    tab.wait_for_selector("#pause[aria-pressed=true]")
    tab.keyboard.press("p")
    tab.wait_for_selector("#pause[aria-pressed=false]")
    before = text(tab, "#budget-text")
    tab.keyboard.press("[")
    assert text(tab, "#budget-text") != before
    tab.keyboard.press("]")
    unnamed = """() => [...document.querySelectorAll("button, input, select, textarea, [role=img]")]
        .filter(e => e.offsetParent && !e.textContent.trim() && !e.labels?.length
            && !e.getAttribute("aria-label")).map(e => e.outerHTML)"""
    assert tab.evaluate(unnamed) == []
    tab.keyboard.press("Tab")
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(ring) == "solid"


def test_the_page_comes_back_by_itself_when_the_server_was_started_again(
    chromium: Any, demo_bundle: Path, tmp_path: Path
) -> None:
    arguments = ("--source", STILL, "--question", "what shape is blue?", "--every", "0.3")
    with camera_pages.camera_page(demo_bundle, tmp_path, *arguments) as first:
        tab = chromium.new_page()
        tab.set_default_timeout(SLOW_MS)
        tab.goto(first.url)
        answered(tab, "what shape is blue?", None)
        port = int(first.url.rstrip("/").rpartition(":")[2])
        assert first.end()[0] == 0
        tab.wait_for_selector("#link:not([hidden])")
        assert "tried again" in text(tab, "#link")
    with camera_pages.camera_page(demo_bundle, tmp_path, *arguments, port=port):
        tab.wait_for_selector("#link", state="hidden")
        tab.wait_for_selector("#live[data-number]")
        tab.wait_for_selector("#history li")
        answered(tab, "what shape is blue?", None)
    tab.close()


@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (390, "light"), (1440, "light")])
def test_nothing_is_cut_off_or_overlaps(opened: Callable[..., Any], width: int, theme: str) -> None:
    tab = opened(width, 844 if width < 500 else 900, color_scheme=theme)
    ask(tab, "what shape is blue?")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    sections = tab.evaluate(
        """() => [".top", ".sources", ".pane:first-child", ".pane:last-child", ".answer",
            ".numbers", ".controls", ".history"].map(s => {
                const box = document.querySelector(s).getBoundingClientRect();
                return [box.left, box.top, box.right, box.bottom];
            })"""
    )
    for index, (left, top, right, bottom) in enumerate(sections):
        assert left >= 0
        assert right <= width
        for other in sections[index + 1 :]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, (sections[index], other)
    PICTURES.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=PICTURES / f"page-{width}-{theme}.png", full_page=True)
