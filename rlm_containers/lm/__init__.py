"""From a sandbox to a language model: the broker, the ways to it and the ways on from it."""
