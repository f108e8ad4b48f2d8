"""What answers OpenAI's chat completions over HTTP: the work behind `tokprune serve`.

Only `app` and `running` need the extra `serve`, and only when they are called.
"""
