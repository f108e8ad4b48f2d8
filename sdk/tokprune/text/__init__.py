"""The text side of an answer: which token comes next, and when it must end."""
