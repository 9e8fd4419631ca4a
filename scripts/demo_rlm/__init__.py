"""The demo: a real ``rlm.RLM`` answers a question about megabytes of text, from inside a container.

``scripts/demo`` prepares everything and runs this package.
"""
