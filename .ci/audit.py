"""Fail where a newer version mends a known vulnerability of a direct dependency; else warn.

pip-audit itself ends well where the service knows none of the packages, as behind a mirror.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 120


def ask(requirements: str) -> list[dict]:
    """Return what pip-audit says of each pinned package, or nothing where it could not ask."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--timeout=10"]
        command += ["--progress-spinner=off", "--format=json", f"--output={answer}"]
        try:
            subprocess.run(
                [*command, f"--requirement={requirements}"],
                capture_output=True,
                check=False,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return []
        return json.loads(answer.read_text())["dependencies"] if answer.is_file() else []


def main(requirements: str) -> int:
    """Print what was found, and return 1 for a vulnerability that another version has not."""
    packages = ask(requirements)
    audited = [package for package in packages if "skip_reason" not in package]
    found = [(package, problem) for package in audited for problem in package["vulns"]]
    for package, problem in found:
        mended = ", ".join(problem["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {problem['id']}, mended in {mended}")
    mendable = [problem for _, problem in found if problem["fix_versions"]]
    print(f"pip-audit: {len(audited)} of {len(packages)} packages looked up, {len(found)} problems")
    if len(audited) < len(packages) or not packages:
        print("pip-audit: WARNING: the index knows no more, or cannot be reached from here")
    return 1 if mendable else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
