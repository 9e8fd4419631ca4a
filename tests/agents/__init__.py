"""This project with agent frameworks, each in its newest version, on docker and podman."""
