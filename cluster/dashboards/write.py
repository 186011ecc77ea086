"""`python -m cluster.dashboards.write FOLDER`: the four dashboards as JSON files."""

import sys
from pathlib import Path

from cluster.dashboards.definition import DASHBOARDS
from cluster.dashboards.grafana import dashboard_json, to_text
from cluster.files import replace_text


def dashboard_files() -> dict[str, str]:
    """File name -> text of each dashboard."""
    return {f"{dashboard.uid}.json": to_text(dashboard_json(dashboard)) for dashboard in DASHBOARDS}


def main() -> None:
    """Write them into the folder that the command line names."""
    (folder,) = sys.argv[1:]
    for name, text in dashboard_files().items():
        replace_text(Path(folder) / name, text)


if __name__ == "__main__":
    main()
