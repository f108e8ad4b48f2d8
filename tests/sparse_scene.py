"""A drawn picture of a few things that the shipped VLMs know well, and a question about it."""

from random import Random

from tokprune.scenes import Sample, ask, draw, make_scene


def sparse_scene() -> Sample:
    """Draw a picture of 392 x 392 pixels with five things or less, and ask for a colour."""
    rng = Random("dev/196/0")
    scene = make_scene(rng, 14, 14)
    (question,) = ask(rng, scene, ("color",), 1)
    return Sample("sparse", (draw(scene),), question.text, question.answer, question.group)


SCENE = sparse_scene()
