"""Compares two workdirs of one config, bit for bit, to see that a change lost nothing.

    make demo                      # with the code of before; then move runs/digits away
    make demo                      # with the code of now
    python -m benchmarks.unchanged before/digits runs/digits

Every finished run of both must have the same `params_sha256`, and every measurement the
same values; run it on one machine, since sums differ from one to another. Prints what
differs, and ends with status 1 if anything does.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

# Fields of a measurement that are not its value.
VARYING = ("seconds_per_image", "batch_size", "device", "key")


def main() -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=pathlib.Path, help="a workdir")
    parser.add_argument("after", type=pathlib.Path, help="another of the same config")
    workdirs = parser.parse_args()
    before, after = facts(workdirs.before), facts(workdirs.after)
    differing = [
        f"{name}: {before.get(name)} before, {after.get(name)} after"
        for name in sorted(before.keys() | after.keys())
        if not _same(before.get(name), after.get(name))
    ]
    print("\n".join(differing) or f"{len(after)} facts, all the same")
    return 1 if differing else 0


def facts(workdir: pathlib.Path) -> dict[str, Any]:
    """The facts that must not change: parameters of every run, and measured values."""
    runs = {
        str(path.parent.relative_to(workdir)): json.loads(path.read_text())
        for path in sorted(workdir.rglob("result.json"))
    }
    if not runs:
        raise SystemExit(f"{workdir} holds no finished run.")
    hashes = {name: run["params_sha256"] for name, run in runs.items()}
    return {**hashes, **_values(workdir / "evaluate")}


def _same(before: Any, after: Any) -> bool:
    """True for equal facts; a row of a table may have fields more than before."""
    if isinstance(before, dict) and isinstance(after, dict):
        after = {name: value for name, value in after.items() if name in before}
    return before == after


def _values(evaluate: pathlib.Path) -> dict[str, Any]:
    """The rows of both tables of an evaluation, by what they are about."""
    values: dict[str, Any] = {}
    for name, keys in (
        ("ladder", ("model", "sampler", "steps", "w", "metric")),
        ("likelihood", ("model", "estimate")),
    ):
        path = evaluate / f"{name}.json"
        for row in json.loads(path.read_text()) if path.exists() else []:
            about = ", ".join(str(row.get(key)) for key in keys)
            values[f"{name}: {about}"] = {
                key: value for key, value in row.items() if key not in VARYING
            }
    return values


if __name__ == "__main__":
    sys.exit(main())
