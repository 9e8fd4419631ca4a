"""The demo: a real `rlm.RLM` completion over megabytes of text, from inside a container.

`scripts/demo` prepares everything and runs this package.
"""
