"""MLflow tracking: one run per stage and fingerprint, logged in the background, with tags of code, data and
backbones.
"""
