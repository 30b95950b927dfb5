"""Does every fault to real runs, and prints what came of it.

    python -m tests.faults --tries 50

Exit status 1 if a run did not survive. Takes about 20 minutes on 2 cores.
"""

import argparse
import pathlib
import sys
import tempfile

from tests.faults.faults import FAULTS, prepare, table
from tests.faults.runs import Lab


def main() -> int:
    """Parses the command and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=50, help="random kills")
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = prepare(Lab(pathlib.Path(folder)), options.tries)
        outcomes = []
        for name in options.only:
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
