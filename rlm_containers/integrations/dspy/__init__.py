"""Run the code of DSPy in containers."""

from rlm_containers.integrations.dspy.interpreter import ContainerInterpreter

__all__ = ["ContainerInterpreter"]
