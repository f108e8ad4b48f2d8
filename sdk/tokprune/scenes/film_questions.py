"""Questions about a drawn video, with the answers that were drawn."""

from collections.abc import Callable, Sequence
from random import Random

from tokprune.scenes.film import Event, Film
from tokprune.scenes.questions import MAKERS, NUMBERS, Question, with_article
from tokprune.scenes.scene import Scene, Thing

Maker = Callable[[Random, Film], Question | None]


def _doing(film: Film, *kinds: str) -> list[tuple[Thing, Event]]:
    pairs = zip(film.things, film.events, strict=True)
    return [(thing, event) for thing, event in pairs if event.kind in kinds]


def _direction(rng: Random, film: Film) -> Question | None:
    """Which way a thing goes."""
    found = _doing(film, "moves")
    if not found:
        return None
    thing, event = rng.choice(found)
    if len(found) == 1 and rng.random() < 0.3:
        return Question("which way does the moving shape go?", event.direction, "direction")
    return Question(f"which way does the {thing.name} move?", event.direction, "direction")


def _order(rng: Random, film: Film) -> Question | None:
    """Which of two things does something earlier."""
    found = _doing(film, "appears", "disappears", "turns")
    if len(found) < 2:
        return None
    (one, first), (other, second) = rng.sample(found, 2)
    if first.start == second.start:
        return None
    word = rng.choice(("first", "last"))
    earlier = first.start < second.start
    thing = one if earlier == (word == "first") else other
    text = f"what changes {word}, the {one.name} or the {other.name}?"
    return Question(text, thing.name, "order")


def _events(rng: Random, film: Film) -> Question | None:
    """How many things do something."""
    counts = {verb: len(_doing(film, f"{verb}s")) for verb in ("move", "appear", "disappear")}
    count = rng.choice(sorted(set(counts.values())))  # or most answers were "zero"
    verb = rng.choice([verb for verb, number in counts.items() if number == count])
    return Question(f"how many shapes {verb}?", NUMBERS[count], "events")


def _turned(rng: Random, film: Film) -> Question | None:
    """What colour a thing turns, or which thing turns a colour."""
    found = _doing(film, "turns")
    if not found:
        return None
    thing, event = rng.choice(found)
    if rng.random() < 0.5:
        return Question(f"what color does the {thing.name} turn?", event.color, "turned")
    if sum(other.color == event.color for _, other in found) > 1:
        return None
    return Question(f"what turns {event.color}?", thing.name, "turned")


def _happens(rng: Random, film: Film) -> Question | None:
    """What a thing does."""
    thing, event = rng.choice(list(zip(film.things, film.events, strict=True)))
    return Question(f"what does the {thing.name} do?", f"it {_does(event)}", "happens")


def _does(event: Event) -> str:
    rest = {"moves": f" {event.direction}", "turns": f" {event.color}"}
    return event.kind + rest.get(event.kind, "")


FILM_MAKERS: dict[str, Maker] = {
    "direction": _direction,
    "order": _order,
    "events": _events,
    "turned": _turned,
    "happens": _happens,
}


def describe_film(film: Film) -> Question:
    """What everything does, from left to right at first: an auxiliary task of the training."""
    pairs = zip(film.things, film.events, strict=True)
    done = [f"{t.name} {_does(e)}" for t, e in sorted(pairs, key=lambda pair: pair[0].x)]
    return Question("describe the video.", "; ".join(done), "caption")


def ask_frame(rng: Random, film: Film) -> Question | None:
    """Whether a thing is in one frame, or where: another auxiliary task."""
    frame = rng.choice((0, film.frames - 1, rng.randrange(min(film.frames, 9))))
    shown = [thing for _, thing in film.at(frame)]
    named = {0: "the first frame", film.frames - 1: "the last frame"}
    place = named.get(frame, f"frame {frame + 1}")
    if rng.random() < 0.5:
        pairs = zip(film.things, film.events, strict=True)
        passing = [thing for thing, event in pairs if event.kind in ("appears", "disappears")]
        thing = rng.choice(passing or film.things)
        answer = "yes" if thing.name in {other.name for other in shown} else "no"
        return Question(f"is there {with_article(thing.name)} in {place}?", answer, "frame")
    known = {thing.name for thing in film.things}  # not by a colour that it turned
    things = tuple(thing for thing in shown if thing.name in known)
    if not things:
        return None
    found = MAKERS["position"](rng, Scene(film.rows, film.columns, 1.0, things, film.seed))
    if found is None:
        return None
    return found._replace(text=f"{found.text.removesuffix('?')} in {place}?", group="frame")


def ask_film(rng: Random, film: Film, groups: Sequence[str], count: int) -> list[Question]:
    """Return up to `count` different questions, over the groups in turn."""
    found: list[Question] = []
    for attempt in range(8 * count):
        if len(found) == count:
            break
        question = FILM_MAKERS[groups[attempt % len(groups)]](rng, film)
        if question is not None and question not in found:
            found.append(question)
    return found
