"""The cost of keeping prompts: CPU and stored bytes of a call, by the length of what is sent.

The rows with files are of requests with those, whose content is replaced by their ids. The last
one is a thread of short runs, each of which stores a whole body.

Run it with `python -m bench.prompts`. The conversation is English text with numbers, and each call
sends all of it again, as runs do. Nothing else is measured than what keeping adds to a call.
"""

import base64
import json
import random
import time
from pathlib import Path
from statistics import median

from arkloop.shared.events.prompts import Encoder, FileContent

CALLS = 20
#: What is said in a step, in characters.
STEP = 1_500
FACTS = {"sent_at": "2026-11-27T12:31:07.412Z", "attempt": 1, "step": 1, "try_number": 1}
TEXT = Path(__file__).parents[1] / "docs" / "reference" / "events.md"


def bodies(first: int) -> list[bytes]:
    """Return the bodies of a run's calls; the first one has about this many bytes."""
    noise, words = random.Random(7), TEXT.read_text().split()

    def some(characters: int) -> str:
        said = ""
        while len(said) < characters:
            said += " ".join(noise.choices(words, k=20)) + f" {noise.random()} "
        return said

    messages = [{"role": "system", "content": some(first)}, {"role": "user", "content": "Go on."}]
    found = []
    for _ in range(CALLS):
        found.append(json.dumps({"model": "m", "messages": messages, "stream": True}).encode())
        messages += [{"role": "assistant", "content": some(STEP)}, {"role": "user", "content": "?"}]
    return found


def thread(runs: int = 100) -> list[bytes]:
    """Return the bodies of runs of one call each, of one thread: 1,300 characters more in each."""
    noise, words = random.Random(1), TEXT.read_text().split()
    text = " ".join(noise.choices(words, k=runs * 400))
    messages: list[dict[str, str]] = []
    sent = []
    for start in range(0, runs * 1_300, 1_300):
        messages.append({"role": "user", "content": text[start : start + 300]})
        sent.append(json.dumps({"system": text[-5_000:], "messages": messages}).encode())
        messages.append({"role": "assistant", "content": text[start + 300 : start + 1_300]})
    return sent


def with_files(count: int, size: int) -> tuple[bytes, list[FileContent]]:
    """Return the body of a request with this many files, and those with their ids."""
    noise = random.Random(7)
    contents = [base64.b64encode(noise.randbytes(size)).decode() for _ in range(count)]
    body = json.dumps({"model": "m", "images": contents}).encode()
    return body, [FileContent(str(number), content) for number, content in enumerate(contents)]


def main() -> None:
    print("first body     sent in all  stored   CPU of the first call  of each other")
    for first in (500, 5_000, 50_000, 500_000):
        sent = bodies(first)
        spent: list[list[float]] = []
        stored = 0
        for _ in range(7):
            encoder, times, stored = Encoder(), [], 0
            for body in sent:
                began = time.process_time_ns()
                stored += len(encoder.encode(FACTS, body))
                times.append((time.process_time_ns() - began) / 1e3)
            spent.append(times)
        begun, others = median(s[0] for s in spent), median(median(s[1:]) for s in spent)
        print(
            f"{len(sent[0]):10,}  {sum(map(len, sent)):14,}  {stored:8,}"
            f"  {begun:18,.0f} µs  {others:10,.0f} µs"
        )
    for count, size in ((1, 2 << 20), (10, 2 << 20), (100, 200 << 10)):
        body, files = with_files(count, size)
        times = []
        for _ in range(7):
            began = time.process_time_ns()
            stored = len(Encoder().encode(FACTS, body, files))
            times.append((time.process_time_ns() - began) / 1e3)
        shown = f"{count} files of {size // 1024} KiB"
        print(f"{len(body):10,}  {shown:>14}  {stored:8,}  {median(times):18,.0f} µs")
    sent = thread()
    stored = sum(len(Encoder().encode(FACTS, body)) for body in sent)
    print(f"thread of 100 runs  {sum(map(len, sent)):9,}  {stored:8,}  of 130,000 characters")


if __name__ == "__main__":
    main()
