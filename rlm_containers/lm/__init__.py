"""The calls that cells make to language models and to functions of the host."""

from rlm_containers.lm.backends import AsyncFunctions, CallableBackend, HandlerBackend, LMCallable
from rlm_containers.lm.broker import CallBudget, LMBroker, SubcallFunction
from rlm_containers.lm.gate import Gate
from rlm_containers.lm.gateway import Gateway
from rlm_containers.lm.proxy import LMProxy

__all__ = [
    "AsyncFunctions",
    "CallBudget",
    "CallableBackend",
    "Gate",
    "Gateway",
    "HandlerBackend",
    "LMBroker",
    "LMCallable",
    "LMProxy",
    "SubcallFunction",
]
