"""Everything in one process, as unit tests of a user's service want it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.harness import Project, environment, sample
from tests.service.deployments import REPLICAS

HERE = Path(__file__).parent


def test_a_deployment_within_one_process_answers_with_receipts(
    project: Project, tmp_path: Path
) -> None:
    module = project.add(HERE / "in_process.py")
    features, trust = sample(3), project.trust()
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", module, trust, json.dumps(features.tolist())],
        cwd=project.folder,
        env=environment(project, tmp_path, {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ready"] == 200
    assert told["value"] == {"malignant": project.expected(features)[:, 0].tolist()}
    assert told["verdict"]["verdict"] == "accepted"
    assert told["verdict"]["simulated"] is True
    parties = {party["name"] for party in told["verdict"]["parties"]}
    assert parties == {"Diagnosis", *REPLICAS}
    agreed = 'bentoml_secure_quorum_total{outcome="agreed",segment="1"} 1.0'
    assert agreed in told["metrics"]
