"""Many sandboxes on one event loop, with an async model.

pip install rlm-containers
python examples/many_at_once.py [RUNTIME [IMAGE]]
"""

import asyncio
import sys

from rlm_containers import Sandbox

TEXTS = ("The quick brown fox", "jumps over", "the lazy dog")


async def model(prompt: str) -> str:
    """Answer a prompt. Stands in for an async client, and runs on this program's loop."""
    await asyncio.sleep(0.1)
    return prompt.title()


async def work(text: str, options: dict[str, str]) -> str:
    """Process one text in a sandbox of its own."""
    async with Sandbox(lm=model, **options) as box:
        await box.aload("text", text)
        result = await box.aexecute("print(llm_query(text), len(text))")
        return result.stdout.strip()


async def main() -> None:
    """Process all texts at the same time."""
    options = dict(zip(("runtime", "image"), sys.argv[1:], strict=False))
    for answer in await asyncio.gather(*(work(text, options) for text in TEXTS)):
        print(answer)


if __name__ == "__main__":
    asyncio.run(main())
