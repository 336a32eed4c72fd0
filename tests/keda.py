"""The ``spec`` of KEDA's ScaledObject as keda.sh documents it, as far as it is used here."""

from __future__ import annotations

from typing import Any

_COUNT = {"type": "integer", "minimum": 1}
_PROMETHEUS = {
    "type": "object",
    "required": ["serverAddress", "query", "threshold"],
    "additionalProperties": {"type": "string"},
}
SCALED_OBJECT: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "scaleTargetRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        },
        "minReplicaCount": _COUNT,
        "maxReplicaCount": _COUNT,
        "pollingInterval": _COUNT,
        "cooldownPeriod": _COUNT,
        "fallback": {
            "type": "object",
            "additionalProperties": False,
            "required": ["failureThreshold", "replicas"],
            "properties": {"failureThreshold": _COUNT, "replicas": _COUNT},
        },
        "advanced": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "horizontalPodAutoscalerConfig": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"behavior": {"type": "object"}},
                }
            },
        },
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "metadata"],
                "properties": {
                    "type": {"const": "prometheus"},
                    "name": {"type": "string"},
                    "metadata": _PROMETHEUS,
                },
            },
        },
    },
}
