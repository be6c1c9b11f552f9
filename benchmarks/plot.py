"""Draw the benchmark's plots: python -m benchmarks.plot build/benchmarks/results.json docs/

Reads the results that `__main__.py` writes (its docstring documents the format). Each plot is written as PNG and SVG,
with the machine, the versions and the build below it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = {"ours": "#0b63ce", "peer": "#a3a3a3", "limit": "#c2410c"}
# In line plots peers differ by shade of grey and by marker; colours are for this package and the limit.
PEER_LINES = (("#6b6b6b", "s"), ("#8a8a8a", "^"), ("#a3a3a3", "D"), ("#b8b8b8", "v"), ("#7d7d7d", "P"))
OUR_MARKERS = "oXhd"
STYLE: dict[Any, Any] = {
    "backend": "Agg",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "svg.hashsalt": "watershed_mw",  # the same results make the same file
}
UNITS = {"us": "µs"}
TIMES = "\N{MULTIPLICATION SIGN}"
# Inches; characters per inch.
BAR_HEIGHT = 0.2
SMALL_PRINT_WIDTH = 17.5

Group = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """One plot: the series that it shows, and how; `metric` selects another list of the rows than the one compared."""

    name: str
    series: str
    title: str
    draw: Callable[[list[Group], Plot], Figure]
    logarithmic: bool = False
    metric: str = ""
    unit: str = ""

    def of(self, group: Group) -> Group:
        """The group as shown in this plot."""
        if not self.metric:
            return group
        return {
            **group,
            "metric": self.metric,
            "unit": self.unit,
            "rows": [{**row, "ratio": []} for row in group["rows"]],  # the ratios belong to the original metric
        }


# --- values ------------------------------------------------------------------------------------------------------


def values_of(group: Group, row: Group) -> list[float]:
    """One value per round of the group's metric."""
    values: list[float] = row[group["metric"]]
    return values


def number(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def label(group: Group, row: Group) -> str:
    """The median, and the median of the ratios within each round."""
    text = number(statistics.median(values_of(group, row)))
    return text + (f"   {TIMES}{number(statistics.median(row['ratio']))}" if row["ratio"] else "")


def measured_rows(group: Group) -> list[Group]:
    return [row for row in group["rows"] if values_of(group, row)]


def order(groups: Sequence[Group]) -> list[str]:
    """The contestants that have a bar: ours first, then peers, each from best to worst across the loads."""
    logarithms: dict[tuple[bool, str], list[float]] = {}
    for group in groups:
        sign = -1 if group["metric"] == "rate" else 1
        for row in measured_rows(group):
            if row["kind"] != "limit":
                value = sign * math.log(statistics.median(values_of(group, row)))
                logarithms.setdefault((row["kind"] != "ours", row["contestant"]), []).append(value)
    return [name for _, name in sorted(logarithms, key=lambda key: (key[0], statistics.mean(logarithms[key])))]


def load_name(group: Group) -> str:
    return str(group["name"]).partition(": ")[2]


def explained(group: Group) -> str:
    """Describe an echo load in words."""
    load = group["load"]
    if load["kind"] != "echo":
        return load_name(group)
    size = load["size"]
    amount = f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB" if size >= 2**10 else f"{size} B"
    flight = "one in flight" if load["window"] == 1 else f"bursts of {load['window']}"
    connections = "1 connection" if load["connections"] == 1 else f"{load['connections']:,} connections"
    return f"{amount}, {connections}, {flight}"


# --- bars --------------------------------------------------------------------------------------------------------


def draw_bars(groups: list[Group], plot: Plot) -> Figure:
    """Draw a panel per load, with a bar per contestant and the limit as a line through them."""
    names = order(groups)
    columns = min(len(groups), 3 if len(groups) > 4 else 2)
    lines = -(-len(groups) // columns)
    height = lines * (len(names) * BAR_HEIGHT + 0.9) + 1.3
    figure, panels = plt.subplots(lines, columns, figsize=(13, height), sharey=True, squeeze=False)
    for panel, group in zip(panels.flat, groups, strict=False):
        draw_panel(panel, group, names, plot.logarithmic)
    for panel in panels.flat[len(groups) :]:
        panel.set_axis_off()
    reference = groups[0]["reference"]
    what = "median (black line: least to most)"
    if not plot.metric:
        what += f", and the median of ratios ({TIMES}) to {reference} in one round"
    figure.suptitle(f"{plot.title}\n{what}", fontweight="bold")
    return figure


def draw_panel(panel: Axes, group: Group, names: list[str], logarithmic: bool) -> None:
    rows = {row["contestant"]: row for row in measured_rows(group)}
    scale(panel, [statistics.median(values_of(group, row)) for row in rows.values()], logarithmic)
    for place, name in enumerate(names):
        if name in rows:
            draw_bar(panel, place, group, rows[name])
        else:
            at = ("axes fraction", "data")
            panel.annotate(" not measured", (0, place), xycoords=at, va="center", fontsize=8, color="#8a8a8a")
    for row in rows.values():
        if row["kind"] == "limit":
            draw_limit(panel, len(names), group, row)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) + 0.2, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(axis_title(group))
    panel.set_title(explained(group), loc="left")


def scale(panel: Axes, middles: list[float], logarithmic: bool) -> None:
    """An axis that leaves a third of its width for the figures beside the bars."""
    least, most = min(middles), max(middles)
    if logarithmic:
        panel.set_xscale("log")
        panel.set_xlim(least / 2, most * (most / least * 2) ** 0.5)
        steps = (1.0,) if most / least > 50 else (1.0, 2.0, 5.0)
        panel.xaxis.set_major_locator(LogLocator(subs=steps))
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        panel.set_xlim(0, most * 1.45)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def draw_limit(panel: Axes, below: float, group: Group, row: Group) -> None:
    middle = statistics.median(values_of(group, row))
    panel.axvline(middle, color=COLOURS["limit"], linewidth=1.2, linestyle="--", zorder=3)
    what = "TCP" if row["contestant"] == "raw" else "upgrade"
    text = f"{row['contestant']} {what}: {label(group, row)}"
    at = (middle, below - 0.25)
    panel.annotate(text, at, (4, 0), "data", "offset points", va="center", fontsize=8, color=COLOURS["limit"])


def draw_bar(panel: Axes, place: int, group: Group, row: Group) -> None:
    values = values_of(group, row)
    middle = statistics.median(values)
    panel.barh(place, middle, height=0.72, color=COLOURS[row["kind"]])
    panel.plot([min(values), max(values)], [place, place], color="#222222", linewidth=1)
    weight = "bold" if row["kind"] == "ours" else "normal"
    at = (max(values), place)
    panel.annotate(label(group, row), at, (4, 0), "data", "offset points", va="center", fontsize=8, fontweight=weight)


def axis_title(group: Group) -> str:
    unit = UNITS.get(group["unit"], group["unit"])
    if group["metric"] == "cpu":
        return f"CPU {unit} per {'broadcast' if group['load']['kind'] == 'broadcast' else 'message'}"
    return f"{unit} per connection" if group["metric"] == "memory" else str(unit)


# --- lines -------------------------------------------------------------------------------------------------------


def draw_lines(groups: list[Group], plot: Plot) -> Figure:
    """Draw a line per contestant over the number of connections, with its name at the end."""
    figure, panel = plt.subplots(figsize=(10, 6))
    groups = sorted(groups, key=lambda group: int(group["load"]["connections"]))
    kinds = {row["contestant"]: row["kind"] for group in groups for row in measured_rows(group)}
    ends: list[tuple[float, str, str]] = []
    for name, (colour, marker) in looks(kinds).items():
        points = [
            (group["load"]["connections"], statistics.median(values_of(group, row)))
            for group in groups
            for row in measured_rows(group)
            if row["contestant"] == name
        ]
        across, up = zip(*points, strict=True)
        dashes = "--" if kinds[name] == "limit" else "-"
        width = 2.4 if kinds[name] == "ours" else 1.4
        panel.plot(across, up, color=colour, marker=marker, linestyle=dashes, linewidth=width)
        ends.append((up[-1], f"{name} {number(up[-1])}", colour))
    counts = [int(group["load"]["connections"]) for group in groups]
    panel.set_xscale("log")
    panel.set_ylim(0, 1.08 * max(value for group in groups for row in measured_rows(group) for value in row["cpu"]))
    panel.set_xticks(counts, [f"{count:,}" for count in counts])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(axis="y", color="#e5e5e5")
    panel.set_xlabel("connections, one message of 32 B in flight on each")
    panel.set_ylabel(axis_title(groups[0]))
    name_ends(panel, ends, counts[-1])
    figure.suptitle(plot.title, fontweight="bold")
    return figure


def looks(kinds: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each line."""
    markers, greys = iter(OUR_MARKERS), iter(PEER_LINES)
    found = {}
    for name, kind in kinds.items():
        if kind == "peer":
            found[name] = next(greys)
        else:
            found[name] = (COLOURS[kind], next(markers) if kind == "ours" else "")
    return found


def name_ends(panel: Axes, ends: list[tuple[float, str, str]], last: float) -> None:
    """Write names to the right of the last points, moved up where two would overlap."""
    room = panel.get_ylim()[1] / 26
    place = -math.inf
    for height, text, colour in sorted(ends):
        place = max(height, place + room)
        at = (last, place)
        panel.annotate(text, at, (9, 0), "data", "offset points", va="center", color=colour, annotation_clip=False)


# --- the files ---------------------------------------------------------------------------------------------------

PLOTS = (
    Plot(
        "cpu", "uvloop", "CPU of the server for each echoed message (uvloop, binary): less is better", draw_bars, True
    ),
    Plot(
        *("rate", "uvloop", "Messages echoed per second by one core (uvloop, binary): more is better", draw_bars, True),
        metric="rate",
        unit="messages per second",
    ),
    Plot(
        *("latency", "uvloop", "Slowest of a hundred messages or bursts (uvloop, binary): less is better"),
        draw_bars,
        logarithmic=True,
        metric="p99",
        unit="us, 99th percentile",
    ),
    Plot("text", "text", "CPU for each echoed JSON text (uvloop): less is better", draw_bars, True),
    Plot("deflate", "deflate", "CPU for each echoed JSON text, compressed (uvloop): less is better", draw_bars),
    Plot("tls", "tls", "CPU for each echoed message over TLS (uvloop, binary): less is better", draw_bars, True),
    Plot("asyncio", "asyncio", "CPU for each echoed message (asyncio's own loop, binary): less is better", draw_bars),
    Plot("interpreted", "interpreted", "CPU for each echoed message, interpreted build: less is better", draw_bars),
    Plot("broadcast", "broadcast", "CPU for one message to all connections (uvloop): less is better", draw_bars),
    Plot("memory", "memory", "Memory of each idle connection (uvloop): less is better", draw_bars),
    Plot("handshakes", "handshakes", "Connections opened by one client (uvloop): more is better", draw_bars),
    Plot("scaling", "scaling", "CPU for each message by number of connections (uvloop): flat is good", draw_lines),
)


def small_print(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"watershed_mw, {machine['build']} build, commit {machine['commit']}; CPython {machine['python']}; {versions}. "
        f"{machine['cpu']}, {machine['cores']} cores (server on one, load on another), Linux {machine['kernel']}; "
        f"{machine['date']}, rounds: {results['rounds']}, seconds of each run: {results['seconds']}."
    )


def save(figure: Figure, path: Path, below: str) -> None:
    inches = figure.get_size_inches()
    width, height = float(inches[0]), float(inches[1])
    lines = textwrap.wrap(below, int(SMALL_PRINT_WIDTH * width))
    foot = 0.16 * len(lines) + 0.15
    figure.text(0.012, 0.1 / height, "\n".join(lines), fontsize=7, color="#555555", va="bottom")
    figure.tight_layout(rect=(0, foot / height, 1, 1))
    figure.savefig(path.with_suffix(".png"), dpi=110, facecolor="white")
    figure.savefig(path.with_suffix(".svg"), facecolor="white", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw each plot that has results."""
    parser = argparse.ArgumentParser(description="Draw the results of the benchmark.")
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    mpl.rcParams.update(STYLE)
    for plot in PLOTS:
        groups = [plot.of(group) for group in results["groups"] if group["series"] == plot.series]
        groups = [group for group in groups if measured_rows(group)]
        if not groups:
            print(f"no results of the series {plot.series}: nothing drawn")
            continue
        path = options.out / f"performance-{plot.name}"
        save(plot.draw(groups, plot), path, small_print(results))
        print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
