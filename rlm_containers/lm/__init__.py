"""The calls that cells make to language models and to functions of the host."""

from rlm_containers.lm.backends import AsyncFunctions, CallableBackend, LMCallable
from rlm_containers.lm.broker import LMBroker, SubcallFunction
from rlm_containers.lm.budget import CallBudget
from rlm_containers.lm.gate import Gate
from rlm_containers.lm.gateway import Gateway
from rlm_containers.lm.handler import HandlerBackend, note_handler
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
    "note_handler",
]
