"""The gap of moment matching over a run: the figure of docs/methods.md.

python -m benchmarks.gaps runs/digits --figure docs/images/gap.png
"""

import argparse
import json
import pathlib

from matplotlib.figure import Figure


def curves(workdir: pathlib.Path) -> dict[int, list[tuple[int, float]]]:
    """(update, gap) of each student, by its number of steps."""
    of_students: dict[int, list[tuple[int, float]]] = {}
    for path in sorted((workdir / "distill_moment_matching").glob("*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        points = [(line["step"], line["gap"]) for line in lines if line.get("gap")]
        of_students[int(path.parent.name)] = points
    return of_students


def main() -> None:
    """Draws the figure, and prints the first, the highest and the last gaps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--figure", type=pathlib.Path, required=True)
    arguments = parser.parse_args()

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    print("| steps | first | highest | last |\n| --- | --- | --- | --- |")
    for num_steps, points in curves(arguments.workdir).items():
        steps, gaps = zip(*points, strict=True)
        axes.plot(steps, gaps, "o-", markersize=3, label=f"{num_steps}")
        print(f"| {num_steps} | {gaps[0]:.4f} | {max(gaps):.4f} | {gaps[-1]:.4f} |")
    axes.set_yscale("log")
    axes.set_xlabel("updates")
    axes.set_ylabel("gap: mean square of v_A - v_T")
    axes.grid(alpha=0.3)
    axes.legend(title="steps", fontsize="small")
    figure.savefig(arguments.figure, dpi=150)


if __name__ == "__main__":
    main()
