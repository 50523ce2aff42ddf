"""Reconstruct on a Slurm cluster: Dask starts workers as Slurm jobs, and emformer-hub gives them parts.

    python examples/slurm.py stack.ome.zarr isotropic.ome.zarr --voxel-size 40,4,4

runs on the login node, or in a small job of its own, and takes the flags of ``emformer-hub reconstruct``. Input and
output lie on a file system that all nodes see. If anything is cut off, the same command with ``--resume`` goes on.

Needs ``pip install 'emformer-hub[cluster]' dask-jobqueue``. Adapt the numbers to your cluster.
"""

import subprocess
import sys

from dask_jobqueue import SLURMCluster

JOBS = 16
cluster = SLURMCluster(
    cores=1,  # one part at a time; a part uses the GPU, or all cores that Slurm gives the job
    processes=1,
    job_cpu=8,
    memory="16GB",
    walltime="04:00:00",
    job_extra_directives=["--gres=gpu:1"],  # leave out for CPU nodes
    job_script_prologue=["export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK"],
    worker_extra_args=["--lifetime", "225m", "--lifetime-stagger", "10m"],  # leave before Slurm ends the job
)
cluster.adapt(maximum_jobs=JOBS)  # jobs that end are replaced
command = ["emformer-hub", "reconstruct", *sys.argv[1:], "--scheduler", cluster.scheduler_address]
raise SystemExit(subprocess.run(command, check=False).returncode)
