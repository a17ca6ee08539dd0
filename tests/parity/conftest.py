"""Says where the parity fixtures come from: a run on the wrong folder must be noticed."""

from pathlib import Path

from tests.parity.fixtures import fixture_root


def pytest_report_header(config: object, start_path: Path) -> str:
    return f"parity fixtures: {fixture_root()}"
