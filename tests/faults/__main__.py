"""Does every fault to real runs, and prints what came of it.

    python -m tests.faults --tries 50
    python -m tests.faults --tries 20 --store    # with workdirs on a server of S3

Exit status 1 if a run did not survive. Takes about 20 minutes on 2 cores.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile

from tests import store
from tests.faults.faults import FAULTS, IN_STORE, prepare, table
from tests.faults.runs import Lab


def main() -> int:
    """Parses the command and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=50, help="random kills")
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--store", action="store_true", help="workdirs in a store")
    options = parser.parse_args()
    names = options.only
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trial = prepare(Lab(pathlib.Path(folder)), options.tries)
        if options.store:
            os.environ |= stack.enter_context(store.server())
            trial = dataclasses.replace(trial, store=f"s3://{store.BUCKET}/faults")
            names = [name for name in names if name in IN_STORE]
        outcomes = []
        for name in names:
            for outcome in FAULTS[name](trial):
                outcomes.append(outcome)
                print(table([outcome]).splitlines()[2], flush=True)
                for failure in outcome.failures:
                    print(f"    {failure}", flush=True)
    print(table(outcomes))
    lost = sum(outcome.tried - outcome.survived for outcome in outcomes)
    print(f"bits lost: {'0' if lost == 0 else f'in {lost} runs'}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
