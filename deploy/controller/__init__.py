"""The deployment controller: what asks for a change of traffic is answered here, and nowhere else."""
