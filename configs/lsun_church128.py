r"""LSUN churches, 128x128, unconditional: as the bedrooms, with other pictures.

    python launch.py --config configs/lsun_church128.py --workdir runs/church

or stage by stage: --config configs/lsun_church128.py:train, then :distill, :evaluate,
:sample. What differs from the paper is said in configs/lsun_bedroom128.py.

Result: not yet run at this size.
"""

from ml_collections import ConfigDict

from configs import lsun_bedroom128


def get_config(stage: str = "all") -> ConfigDict:
    """The run described above."""
    config = lsun_bedroom128.get_config(stage)
    config.update({"data": {"name": "lsun/church_outdoor"}})
    return config
