"""The options of a sandbox, and where they come from."""

from rlm_containers.options.conflicts import set_by_arguments, sets_core_limit
from rlm_containers.options.file import config_path
from rlm_containers.options.options import (
    DEFAULT_IMAGE,
    OptionArguments,
    SandboxOptions,
    read_option,
    unknown_option,
)
from rlm_containers.options.sources import (
    check_config,
    configured_options,
    explain_options,
    unknown_variables,
)
from rlm_containers.options.values import AUTO, is_count, is_seconds, parse_size, wrong_value

__all__ = [
    "AUTO",
    "DEFAULT_IMAGE",
    "OptionArguments",
    "SandboxOptions",
    "check_config",
    "config_path",
    "configured_options",
    "explain_options",
    "is_count",
    "is_seconds",
    "parse_size",
    "read_option",
    "set_by_arguments",
    "sets_core_limit",
    "unknown_option",
    "unknown_variables",
    "wrong_value",
]
