"""Data: records, tasks, readers, curation, the shapes world and the mixture."""
