"""``make bench``: what operations cost, beside Kamailio where it is installed.

python -m tests.bench server --servers memory,sqlite,kamailio-fm --operations register,call
python -m tests.bench server --rate 500 --operations register,refresh,call,message
python -m tests.bench micro
python -m tests.bench memory --servers sqlite
python -m tests.bench growth --servers sqlite --sizes 1000,100000,1000000
python -m tests.bench crowd --servers sqlite,redis --sizes 1000,100000,1000000
python -m tests.bench crowd --servers memory,kamailio-fm
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import crowd, growth, memory, micro, server_bench
from tests.bench.servers import Kamailio


def main() -> None:
    """Measure what is asked for, print it, and keep it as JSON and SVG."""
    options = _options()
    options.results.mkdir(parents=True, exist_ok=True)
    results: Any
    match options.what:
        case "micro":
            results = micro.measure()
            for name, cost in results.items():
                print(f"{name:28} {cost:10.2f} µs")
        case "growth":
            results = []
            for store in options.servers or ["sqlite", "redis"]:
                results += growth.run(store, options.sizes or growth.SIZES)
            _print_values(results)
        case "crowd":
            results = []
            for store in options.servers or ["memory", "sqlite", "redis"]:
                results += crowd.run(store, options.sizes)
            _print_values(results)
        case "memory":
            results = []
            for row in memory.run(options.servers or ["sqlite"]):
                results.append(row)
                print(*row.values(), sep="  ", flush=True)
        case _:
            results = _measure_servers(options)
    saved = options.results / f"{options.what}.json"
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()}
    saved.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(f"Saved in {saved}.")


def _measure_servers(options: argparse.Namespace) -> list[dict[str, Any]]:
    kinds = options.servers
    if not kinds:
        kinds = ["memory", "sqlite", "redis"]
        kinds += ["kamailio-fm", "kamailio-qm"] if Kamailio.is_installed() else []
    rows = []
    load = server_bench.Load(options.transport, options.rate)
    for row in server_bench.run(kinds, options.operations, load, options.repeat):
        rows.append(row)
        _print_row(row)
    plot = options.results / f"server-{options.transport}.svg"
    plot.write_text(_svg(rows))
    print(f"Plot in {plot}.")
    return rows


def _print_values(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ")


def _print_row(row: dict[str, Any]) -> None:
    rate = f", {row['rate']} a second" if row["rate"] else ""
    print(f"{row['operation']} over {row['transport']}{rate}:")
    for kind, result in row["servers"].items():
        low, high = result["spread"]
        more = "  ".join(f"{key} {result[key]}" for key in server_bench.TIMES if key in result)
        print(f"  {kind:18}{result['cpu_us']:>10} µs  [{low} .. {high}]  {more}", flush=True)


def _svg(rows: Sequence[dict[str, Any]]) -> str:
    """Bars: CPU per operation of each server, each operation on a scale of its own."""
    parts, y = [], 10
    for row in rows:
        parts.append(f'<text x="10" y="{y + 12}" font-weight="bold">{row["operation"]}</text>')
        y += 20
        most = max(result["cpu_us"] for result in row["servers"].values()) or 1
        for kind, result in row["servers"].items():
            width = 400 * result["cpu_us"] / most
            colour = "#999" if kind.startswith("kamailio") else "#36c"
            parts.append(
                f'<text x="20" y="{y + 12}">{kind}</text>'
                f'<rect x="160" y="{y}" width="{width:.0f}" height="14" fill="{colour}"/>'
                f'<text x="{165 + width:.0f}" y="{y + 12}">{result["cpu_us"]} µs</text>'
            )
            y += 18
        y += 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{y}" font-size="12"'
    return f'{head} font-family="sans-serif">{"".join(parts)}</svg>\n'


def _options() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("server", "micro", "growth", "crowd", "memory"))
    parser.add_argument("--servers", type=words, default=[])
    parser.add_argument("--operations", type=words, default=list(server_bench.OPERATIONS))
    parser.add_argument("--transport", choices=("udp", "tcp", "tls"), default="udp")
    parser.add_argument("--rate", type=int, default=0, help="the same load for all, not the most")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("run/bench"))
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(size) for size in words(text)],
        default=[],
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
