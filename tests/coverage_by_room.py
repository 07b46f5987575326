"""Test coverage by room: `make coverage` runs the tests under coverage and then this, on its JSON report."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def main(report: str) -> None:
    """Print covered and all lines of each room of the engine, and of the whole."""
    files = json.loads(Path(report).read_text(encoding="utf-8"))["files"]
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, data in files.items():
        parts = Path(name).parts[1:] if Path(name).parts[0] == "recopt" else Path(name).parts
        room = parts[0] if len(parts) > 1 else "(engine)"
        for key in (room, "all"):
            rooms[key][0] += data["summary"]["covered_lines"]
            rooms[key][1] += data["summary"]["num_statements"]
    for room, (covered, lines) in sorted(rooms.items(), key=lambda item: (item[0] == "all", item[0])):
        print(f"{room:12} {covered:6} of {lines:6} lines  {100 * covered / max(lines, 1):5.1f} %")


if __name__ == "__main__":
    main(sys.argv[1])
