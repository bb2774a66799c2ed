"""What a stage will need before anything runs: parameters, memory of a worker by part, FLOPs, hours and cost.

Plain arithmetic on settings and base sizes; imports neither torch nor ray, so that a laptop can plan for a cluster.
"""
