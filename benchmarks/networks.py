"""The time of a training update of one network, beside that of others.

    python -m benchmarks.networks digits digits_dit

The sizes are names of `benchmarks.sizes`; a ratio is a network's time over that of the
first in the same round. "At equal time" in the docs is by this table.
"""

import argparse
import pathlib

from benchmarks import contest, ours, sizes
from benchmarks.contest import Contender


def main() -> None:
    """Lets them take turns, and prints a table."""
    options = _parse()
    machine = contest.machine()
    print(contest.introduction(machine), flush=True)
    env = {"JAX_NUM_CPU_DEVICES": str(ours.cpu_devices())}
    contenders = [
        Contender(size, ours.train, {"size": size}, env) for size in options.sizes
    ]
    results = contest.measure(
        contenders, rounds=options.rounds, seconds=options.seconds
    )
    rows = contest.rows(results, options.sizes[0], job="train")
    print(contest.table(rows))
    if options.json:
        contest.write(options.json, machine, rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="+", choices=sizes.SIZES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
