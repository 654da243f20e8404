"""The YAML of an installation: one frozen model a part, checked before anything starts.

Precedence, told once: flag > environment > file > default.
Pure: reads texts and mappings that others hand in; knows no Ray, vLLM, clock or file.
"""

from aibrix_ray.config.diff import ApplicationChange, Change, Diff, Effect, diff
from aibrix_ray.config.engine import EngineConfig, SimulatedEngineConfig, VllmEngineConfig
from aibrix_ray.config.file import ParsedFile, ServeFile
from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig, ModelConfig, RoutingConfig
from aibrix_ray.config.gateway_file import GatewayFlag, check_gateway, read_gateway_file
from aibrix_ray.config.group import GroupArgs, ReplicasConfig
from aibrix_ray.config.parse import (
    parse_gateway_args,
    parse_gateway_user_config,
    parse_group_args,
)
from aibrix_ray.config.problems import NOTHING
from aibrix_ray.config.schema import json_schema
from aibrix_ray.config.sources import PRECEDENCE, Sourced, check, effective

__all__ = [
    "NOTHING",
    "PRECEDENCE",
    "ApplicationChange",
    "Change",
    "Diff",
    "Effect",
    "EngineConfig",
    "GatewayArgs",
    "GatewayFlag",
    "GatewayUserConfig",
    "GroupArgs",
    "ModelConfig",
    "ParsedFile",
    "ReplicasConfig",
    "RoutingConfig",
    "ServeFile",
    "SimulatedEngineConfig",
    "Sourced",
    "VllmEngineConfig",
    "check",
    "check_gateway",
    "diff",
    "effective",
    "json_schema",
    "parse_gateway_args",
    "parse_gateway_user_config",
    "parse_group_args",
    "read_gateway_file",
]
