"""Settings: the params file and the environment as one frozen, validated object.

Knows shapes and types of values; names of readers, tasks and metrics are checked by `mgpt.pipeline.check`.
"""

from mgpt.config.environment import JOB_FINGERPRINT, JOB_INPUTS
from mgpt.config.issues import ConfigError, ConfigIssue
from mgpt.config.loader import load_settings, read_settings
from mgpt.config.restricted_view import section
from mgpt.config.settings import Settings

__all__ = [
    "JOB_FINGERPRINT",
    "JOB_INPUTS",
    "ConfigError",
    "ConfigIssue",
    "Settings",
    "load_settings",
    "read_settings",
    "section",
]
