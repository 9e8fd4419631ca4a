"""``python -m rlm_containers`` is ``rlm-containers``."""

from rlm_containers.cli import main

main()
