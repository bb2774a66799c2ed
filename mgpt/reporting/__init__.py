"""HTML pages and drawings about data and models; no stage's result depends on them."""
