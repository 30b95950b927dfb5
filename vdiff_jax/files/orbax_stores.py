"""Orbax for s3:// as it is for gs://: with the driver that TensorStore has for it.

Orbax 0.12 writes its own files through `etils.epath`, which knows both; but of
TensorStore's drivers it asks for that of gs:// alone, and takes s3:// for a path that
is not absolute. The function that describes a place to TensorStore is taught the other.
"""

import functools
from collections.abc import Callable
from typing import Any

from vdiff_jax.files import kvstores

_S3, _GS = "s3://", "gs://"


@functools.cache
def teach() -> None:
    """Lets Orbax write arrays to s3:// and read them, in this process, from here on."""
    from orbax.checkpoint._src.serialization import tensorstore_utils

    build: Callable[..., Any] = tensorstore_utils.build_kvstore_tspec

    def build_for_both(directory: str, *arguments: Any, **options: Any) -> Any:
        if not str(directory).startswith(_S3):
            return build(directory, *arguments, **options)
        of_gs = str(directory).replace(_S3, _GS, 1)
        return _as_s3(build(of_gs, *arguments, **options))

    tensorstore_utils.build_kvstore_tspec = build_for_both


def _as_s3(spec: Any) -> Any:
    """The same description, with the driver of s3 wherever there is that of gs."""
    if not isinstance(spec, dict):
        return spec
    inner = {name: _as_s3(value) for name, value in spec.items()}
    if str(inner.get("driver")).startswith("gcs"):
        inner |= {"driver": "s3", **kvstores.of_s3()}
    return inner
