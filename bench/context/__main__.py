"""Print what context handling achieves, next to its targets.

    .venv/bin/python -m bench.context [--real TURNS]

Nothing of it depends on the machine or needs a network. `--real` holds conversations
with the local model of `arkloop dev` instead, which reads some hundred tokens a second. Exit status
1: a target was missed.
"""

import argparse
import sys
from collections.abc import Iterator

from bench.context import real_model, scenarios


def main() -> int:
    parser = argparse.ArgumentParser(description="What context handling achieves.")
    parser.add_argument("--real", type=int, metavar="TURNS", help="with the local model")
    turns = parser.parse_args().real
    missed = 0
    for what, figure, target, is_met in _real_figures(turns) if turns else _figures():
        missed += not is_met
        print(f"{'ok    ' if is_met else 'MISSED'} {what:<72} {figure:>24}  (to reach: {target})")
    return 1 if missed else 0


def _real_figures(turns: int) -> Iterator[tuple[str, str, str, bool]]:
    with real_model.served() as url:
        for name, text in scenarios.TEXTS.items():
            answers, refused, most = real_model.dense_thread(url, text, turns)
            what = f"runs of a thread of {name} over the local model that complete"
            figure = f"{answers} of {turns} ({refused} refused, {most} tokens)"
            yield what, figure, str(turns), answers == turns


def _figures() -> Iterator[tuple[str, str, str, bool]]:
    steps = scenarios.many_steps()
    part = steps.shared_between_truncations
    what = "prompt prefix shared with the previous call, between two truncations"
    yield what, f"{part:.1%}", "95 %", part >= 0.95
    what = f"cost of 200 steps x 8 KB at 128k context, {scenarios.MODEL}"
    usd = f"{steps.usd:.2f} USD ({steps.truncations} truncations)"
    yield what, usd, "3.50 USD", steps.usd <= 3.5
    for name, text in scenarios.TEXTS.items():
        for context_tokens in (None, 4_096):
            answers, refused = scenarios.dense_thread(text, 200, context_tokens)
            size = "unknown size" if context_tokens is None else "known size"
            what = f"runs of a thread of {name} over a 4k context of {size} that complete"
            yield what, f"{answers} of 200 ({refused} refused)", "200", answers == 200
    for results, context_tokens in ((10, 128_000), (1, 15_000)):
        long = scenarios.long_results(results, 60_000, context_tokens)
        what = f"{results} x 60 KB in one turn at {context_tokens:,} tokens, the middle found"
        found = len(long.answer.split())
        yield what, f"{found} with {long.reads} reads", str(results), found == results
    is_found, summaries, part = scenarios.remembered(1_000)
    what = "fact of turn 1 of 1,000 in the last answer, with summaries"
    figure = f"{'found' if is_found else 'lost'}, {summaries} summaries, {part:.0%} of input"
    yield what, figure, "found", is_found


if __name__ == "__main__":
    sys.exit(main())
