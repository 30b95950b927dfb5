"""TensorStore's key-value stores: how its drivers are told of a place."""

import os
import pathlib
from typing import Any

from vdiff_jax.files.place import StorePath

# A request that fails is sent again this often: about half a minute in all.
_RETRIES = {"max_retries": 8, "initial_delay": "200ms", "max_delay": "10s"}


def spec(place: StorePath) -> dict[str, Any]:
    """The JSON of the driver, for a folder of a store.

    Credentials are those of the environment, which s3fs and gcsfs find as well.
    TensorStore does not know AWS_ENDPOINT_URL, the address of a store that is not
    Amazon's; so it is handed over.
    """
    bucket, path = place.parts[2], "".join(f"{part}/" for part in place.parts[3:])
    if place.scheme == "gs":
        return {
            "driver": "gcs",
            "bucket": bucket,
            "path": path,
            "gcs_request_retries": _RETRIES,
        }
    return {"driver": "s3", "bucket": bucket, "path": path, **of_s3()}


def of_arrays(folder: pathlib.Path) -> Any:
    """The store of the arrays that Orbax has written into a folder: a `KvStore`.

    Args:
      folder: A folder of plain characters, or a place in an object store.

    Raises:
      ValueError: If there are none.
    """
    import tensorstore  # here, because it takes a while

    base = (
        spec(folder)
        if isinstance(folder, StorePath)
        else {"driver": "file", "path": f"{folder}/"}
    )
    return tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()


def of_s3() -> dict[str, Any]:
    """What the driver of s3 is told beside bucket and path."""
    told: dict[str, Any] = {"s3_request_retries": _RETRIES}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(
        "AWS_ENDPOINT_URL"
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        told |= {"endpoint": endpoint, "use_conditional_write": True}
        region = region or "us-east-1"
    if region:
        told["aws_region"] = region
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        # Else it looks for files first, and complains of each that is not there.
        told["aws_credentials"] = {"type": "environment"}
    return told
