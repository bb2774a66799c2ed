"""Plans of a stage's resources before anything runs: parameters, memory of a worker by part, FLOPs, hours and cost.

Plain arithmetic on settings and model sizes. Imports neither torch nor ray, so that a laptop can plan for a cluster.
"""
