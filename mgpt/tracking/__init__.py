"""MLflow tracking: one run per stage and fingerprint, logged in the background, with tags for code, data and
backbones."""
