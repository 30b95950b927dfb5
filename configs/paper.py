"""configs/defaults.py by its former name, which is understood for one version."""

import sys

from ml_collections import ConfigDict

from configs import defaults


def get_config(stage: str = "all") -> ConfigDict:
    """The shared settings."""
    print("configs/paper.py is now configs/defaults.py: import that.", file=sys.stderr)
    return defaults.get_config(stage)
