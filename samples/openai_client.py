"""Ask `tokprune serve` with OpenAI's client, in any language that has one.

    tokprune serve BUNDLE                                    # in another terminal
    python samples/openai_client.py PICTURE QUESTION [--url http://127.0.0.1:8000/v1]

Needs `pip install openai`. The picture goes along as a data URL: the server fetches nothing.
"""

import base64
import mimetypes
import sys
from pathlib import Path

import openai
import tyro


def ask(
    picture: Path,
    question: str,
    /,
    url: str = "http://127.0.0.1:8000/v1",
    budget: str = "0.5",
    deadline_s: float = 10.0,
) -> None:
    """Ask about a picture.

    Args:
        picture: a JPEG, PNG or WebP file.
        question: what to ask.
        url: where `tokprune serve` says that it is ready.
        budget: vision tokens that may enter the LLM.
        deadline_s: the answer ends as it is then.
    """
    kind = mimetypes.guess_type(picture)[0] or "image/png"
    data = base64.b64encode(picture.read_bytes()).decode()
    shown = {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
    asked = {"type": "text", "text": question}  # after the picture, whose tokens it shall choose
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        (model,) = client.models.list()
        try:
            stream = client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": [shown, asked]}],  # pyright: ignore
                stream=True,
                extra_body={"budget": budget, "deadline_s": deadline_s},
            )
            for chunk in stream:
                for choice in chunk.choices:
                    print(choice.delta.content or "", end="", flush=True)
                told = getattr(chunk, "tokprune", None)
                if told is not None:
                    print(f"\n{told['kept']} of {told['total']} vision tokens")
        except openai.APIStatusError as error:  # 503: busy or late; 400: the request makes no sense
            sys.exit(f"{error.status_code} {error.code}: {error.message}")


if __name__ == "__main__":
    tyro.cli(ask)
