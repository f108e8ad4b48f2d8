"""A request on its way to an answer: the door, the worker, the flow wrapped, and the text."""
