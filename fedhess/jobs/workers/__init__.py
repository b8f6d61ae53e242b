"""Workers that run the runs of a job side by side: processes of this machine, tasks of Ray, jobs of Slurm."""
